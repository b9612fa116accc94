# Detection from cameras with CenterHead: mAP 35.56, NDS 41.21 published.
# Source: MIT's det/centerhead/lssfpn/camera/256x704/swint/default.yaml.
_base_ = ['./bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py']

max_epochs = 20
lr = 2e-4  # total batch 32
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]

model = dict(
    data_preprocessor=dict(voxelize_cfg=None),
    pts_middle_encoder=None,
    fusion_layer=None,
    view_transform=dict(
        _delete_=True,
        type='LSSTransform',
        in_channels=256,
        out_channels=80,
        image_size=_base_.image_size,
        feature_size=[32, 88],
        xbound=[-51.2, 51.2, 0.4],
        ybound=[-51.2, 51.2, 0.4],
        zbound=[-10.0, 10.0, 20.0],
        dbound=[1.0, 60.0, 0.5],
        downsample=2,
    ),
    pts_backbone=dict(
        _delete_=True, type='GeneralizedResNet', in_channels=80, blocks=[[2, 128, 2], [2, 256, 2], [2, 512, 1]]
    ),
    pts_neck=dict(
        _delete_=True, type='LSSFPN', in_indices=[-1, 0], in_channels=[512, 128], out_channels=256, scale_factor=2
    ),
    bbox_head=dict(
        _delete_=True,
        type='BEVCenterHead',
        in_channels=256,
        tasks=[
            dict(num_class=1, class_names=['car']),
            dict(num_class=2, class_names=['truck', 'construction_vehicle']),
            dict(num_class=2, class_names=['bus', 'trailer']),
            dict(num_class=1, class_names=['barrier']),
            dict(num_class=2, class_names=['motorcycle', 'bicycle']),
            dict(num_class=2, class_names=['pedestrian', 'traffic_cone']),
        ],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=64,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=point_cloud_range,
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=500,
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[0.1, 0.1],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True,
        train_cfg=dict(
            point_cloud_range=point_cloud_range,
            grid_size=[1024, 1024, 1],
            voxel_size=[0.1, 0.1, 0.2],
            out_size_factor=8,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=500,
            min_radius=2,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        ),
        test_cfg=dict(
            post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_per_img=500,
            max_pool_nms=False,
            min_radius=[4, 12, 10, 1, 0.85, 0.175],
            score_threshold=0.1,
            out_size_factor=8,
            voxel_size=[0.1, 0.1],
            nms_type='circle',
            pre_max_size=1000,
            post_max_size=83,
            nms_thr=0.2,
        ),
    ),
)
train_pipeline = [
    _base_.load_images,
    _base_.load_points,  # they turn with the boxes and are not looked at
    _base_.load_boxes,
    _base_.images_train,
    dict(
        type='BEVFusionGlobalRotScaleTrans',
        scale_ratio_range=[0.95, 1.05],
        rot_range=[-0.3925, 0.3925],
        translation_std=0,
    ),
    _base_.flip,
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
    _base_.pack,
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(custom_keys={'img_backbone': dict(lr_mult=0.1)}))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=8, eta_min=lr * 5, begin=0, end=8, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=12, eta_min=lr * 5e-5, begin=8, end=20, by_epoch=True,
         convert_to_iter_based=True),
]  # fmt: skip
train_cfg = dict(max_epochs=max_epochs)
linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to='train_cfg.max_epochs'),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
