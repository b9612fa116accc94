# AdamW with a linear warm-up and a cosine to zero, all by iteration: short trainings.
max_epochs = 12
lr = 4e-4

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),  # iterations
    # epochs, turned into iterations; T_max and end follow max_epochs through linked_fields
    dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=8)

linked_fields_schedule = [
    dict(
        name='max_epochs',
        value=max_epochs,
        to=['train_cfg.max_epochs', 'param_scheduler.1.end', 'param_scheduler.1.T_max'],
    ),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
