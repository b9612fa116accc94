# LiDAR alone, detection (TransFusion-L): mAP 64.7 to 64.9, NDS 69.3 to 69.6 published. Pastes objects until epoch 15;
# their database: occforge.datasets.detection.gt_database (docs/bevfusion.md).
# Source: mmdet3d 1.4.0, projects/BEVFusion; MIT's voxelnet_0p075.yaml.
_base_ = ['./bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py']

max_epochs = 20
lr = 1e-4  # total batch 32
data_root = _base_.data_root

model = dict(img_backbone=None, img_neck=None, view_transform=None, fusion_layer=None)

db_sampler = dict(
    data_root=data_root,
    info_path=data_root + 'nuscenes_dbinfos_train.pkl',
    rate=1.0,
    prepare=dict(
        filter_by_difficulty=[-1],
        filter_by_min_points=dict(
            car=5, truck=5, bus=5, trailer=5, construction_vehicle=5, traffic_cone=5, barrier=5, motorcycle=5, bicycle=5,
            pedestrian=5,
        ),
    ),
    classes=_base_.class_names,
    sample_groups=dict(
        car=2, truck=3, construction_vehicle=7, bus=4, trailer=6, barrier=2, motorcycle=6, bicycle=6, pedestrian=2,
        traffic_cone=2,
    ),
    points_loader=dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=[0, 1, 2, 3, 4]),
)  # fmt: skip
train_pipeline = [
    _base_.load_points,
    _base_.load_boxes,
    dict(type='BEVObjectSample', db_sampler=db_sampler),
    _base_.turn,
    _base_.flip,
    *_base_.filters,
    _base_.shuffle,
    _base_.pack,
]
test_pipeline = [_base_.load_points, _base_.filters[0], _base_.pack]
modality = dict(use_camera=False, use_lidar=True)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline, modality=modality)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=8, eta_min=lr * 10, begin=0, end=8, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=12, eta_min=lr * 1e-4, begin=8, end=20, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', T_max=8, eta_min=0.85 / 0.95, begin=0, end=8, by_epoch=True,
         convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', T_max=12, eta_min=1, begin=8, end=20, by_epoch=True,
         convert_to_iter_based=True),
]  # fmt: skip
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
custom_hooks = [dict(type='DisableObjectSampleHook', disable_after_epoch=15)]
linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to='train_cfg.max_epochs'),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
