# FB-OCC's schedule: AdamW, linear warm-up over 200 iterations from a thousandth, then constant; 20 epochs; mixed
# precision. An epoch is what the batch sampler says, so its length follows the actual number of processes.
# Source: Li et al., "FB-OCC", 2023, and its public config.
max_epochs = 20
lr = 2e-4  # total batch 64 (16 x 4); the 8 x 4 recipe keeps it

optim_wrapper = dict(
    type='OccAmpOptimWrapper',
    loss_scale='dynamic',
    accumulative_counts=1,
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=200)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=64)

linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to=['train_cfg.max_epochs', 'train_cfg.val_interval']),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
