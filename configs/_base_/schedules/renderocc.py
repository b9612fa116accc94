# RenderOcc's schedule: AdamW, linear warm-up over 200 iterations from a thousandth, then constant.
# Source: Pan et al., "RenderOcc", ICRA 2024, and its public configs.
max_epochs = 12
lr = 1e-4  # total batch 16

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=200)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=16)

linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to='train_cfg.max_epochs'),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
