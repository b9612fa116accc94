# The small BEVFusion from cameras alone, with CenterHead.
_base_ = ['./bevfusion_synthetic.py']

point_cloud_range = _base_.point_cloud_range
model = dict(
    data_preprocessor=dict(voxelize_cfg=None),
    pts_middle_encoder=None,
    fusion_layer=None,
    view_transform=dict(
        type='LSSTransform', out_channels=48, xbound=[-51.2, 51.2, 0.8], ybound=[-51.2, 51.2, 0.8], downsample=2
    ),
    map_head=dict(grid_transform=dict(input_scope=[[-51.2, 51.2, 1.6], [-51.2, 51.2, 1.6]])),
    bbox_head=dict(
        _delete_=True,
        type='BEVCenterHead',
        in_channels=64,
        tasks=[dict(num_class=len(_base_.object_classes), class_names=_base_.object_classes)],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        share_conv_channel=48,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=point_cloud_range,
            post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_num=200,
            score_threshold=0.05,
            out_size_factor=8,
            voxel_size=[0.2, 0.2],
            code_size=9,
        ),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        train_cfg=dict(
            point_cloud_range=point_cloud_range,
            grid_size=[512, 512, 1],
            voxel_size=[0.2, 0.2, 8.0],
            out_size_factor=8,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=300,
            min_radius=2,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        ),
        test_cfg=dict(
            post_center_limit_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
            max_per_img=200,
            score_threshold=0.05,
            out_size_factor=8,
            voxel_size=[0.2, 0.2],
            nms_type='rotate',
            pre_max_size=500,
            post_max_size=200,
            nms_thr=0.2,
        ),
    ),
)
# the class names of the head are those of its tasks
linked_fields_bevfusion = [entry for entry in _base_.linked_fields_bevfusion if entry['name'] != 'object_classes']
