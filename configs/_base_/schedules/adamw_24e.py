# FusionOcc's schedule: AdamW, warm-up over 500 iterations from a third, cosine per epoch to a thousandth, 24 epochs.
# Source: S. Zhang et al., FusionOcc: Multi-Modal Fusion for 3D Occupancy Prediction, ACM MM 2024.
max_epochs = 24
lr = 5e-5  # total batch 8

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),  # iterations
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, eta_min_ratio=1e-3),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# --auto-scale-lr: linear in the total batch
auto_scale_lr = dict(enable=False, base_batch_size=8)

linked_fields_schedule = [
    dict(
        name='max_epochs',
        value=max_epochs,
        to=['train_cfg.max_epochs', 'param_scheduler.1.end', 'param_scheduler.1.T_max'],
    ),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
