# Map segmentation from cameras and LiDAR: mIoU 62.95 published. Source: MIT's seg/fusion-bev256d2-lss.yaml.
_base_ = ['./bevfusion_multitask.py']

max_epochs = 20
lr = 1e-4  # total batch 32
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.1, 0.1, 0.2]

model = dict(
    data_preprocessor=dict(voxelize_cfg=dict(max_voxels=[90000, 120000])),
    img_backbone=dict(drop_path_rate=0.3),
    view_transform=dict(type='LSSTransform', xbound=[-51.2, 51.2, 0.4], ybound=[-51.2, 51.2, 0.4]),
    bbox_head=None,
)
val_evaluator = [dict(type='BEVMapMetric')]
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=lr),
    paramwise_cfg=dict(
        custom_keys={
            '*.relative_position_bias_table': dict(decay_mult=0.0),
        }
    ),
)
# up to ten times the rate in 8 epochs, then down to a ten-thousandth; the momentum the other way
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=8, eta_min=lr * 10, begin=0, end=8, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=12, eta_min=lr * 1e-4, begin=8, end=20, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', T_max=8, eta_min=0.85 / 0.95, begin=0, end=8, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', T_max=12, eta_min=1, begin=8, end=20, by_epoch=True,
         convert_to_iter_based=True),
]  # fmt: skip
train_cfg = dict(max_epochs=max_epochs)
linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to='train_cfg.max_epochs'),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
