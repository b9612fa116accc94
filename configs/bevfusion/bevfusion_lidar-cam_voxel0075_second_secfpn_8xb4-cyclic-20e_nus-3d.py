# Camera and LiDAR, detection: mAP 68.5, NDS 71.4 published. Starts from the LiDAR-only model
# (load_from) and a Swin-T trained on nuImages (model.img_backbone.init_cfg).
# Source: mmdet3d 1.4.0, projects/BEVFusion; MIT's convfuser.yaml is the same network.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/models/bevfusion.py',
]

max_epochs = 6
lr = 2e-4  # total batch 32
find_unused_parameters = False

load_map = _base_.load_map
train_pipeline = [step for step in _base_.train_pipeline if step != load_map]
test_pipeline = [step for step in _base_.test_pipeline if step != load_map]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.33333333, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR', begin=0, T_max=max_epochs, end=max_epochs, by_epoch=True, eta_min_ratio=1e-4,
        convert_to_iter_based=True,
    ),
    # momentum down to 0.85 / 0.95 of its way while the rate is high, and back
    dict(type='CosineAnnealingMomentum', eta_min=0.85 / 0.95, begin=0, end=2.4, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=1, begin=2.4, end=max_epochs, by_epoch=True,
         convert_to_iter_based=True),
]  # fmt: skip
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=1))

linked_fields_schedule = [
    dict(
        name='max_epochs',
        value=max_epochs,
        to=['train_cfg.max_epochs', 'param_scheduler.1.end', 'param_scheduler.1.T_max', 'param_scheduler.3.end'],
    ),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
