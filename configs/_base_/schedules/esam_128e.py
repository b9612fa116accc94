# ESAM's schedule: AdamW, polynomial decay by epoch. Source: Xu et al., "EmbodiedSAM", ICLR 2025, and its configs.
max_epochs = 128
lr = 1e-4

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [dict(type='PolyLR', begin=0, end=max_epochs, power=0.9, by_epoch=True)]
# What the configs of the three routes have in its place: warm-up, then cosine.
cosine_schedule = [
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),  # iterations
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=16)

linked_fields_schedule = [
    dict(
        name='max_epochs',
        value=max_epochs,
        to=['train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.0.end'],
    ),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
