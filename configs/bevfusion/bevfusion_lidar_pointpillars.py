# LiDAR alone, detection, with pillars of 0.2 m in place of voxels: no sparse convolution, cells of 0.8 m.
# Source: A. Lang et al., "PointPillars", CVPR 2019; grid, limits and widths as in MIT's BEVFusion. PillarFeatureNet is
# mmdet3d's (three offsets from the middle of the pillar).
_base_ = ['./bevfusion_lidar_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py']

point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.2, 0.2, 8.0]
norm = dict(type='BN1d', eps=1e-3, momentum=0.01)

model = dict(
    data_preprocessor=dict(
        voxelize_cfg=dict(
            point_cloud_range=point_cloud_range,
            voxel_size=voxel_size,
            max_num_points=20,
            max_voxels=[30000, 60000],
            voxelize_reduce=False,
        )
    ),
    pts_voxel_encoder=dict(
        type='PillarFeatureNet',
        in_channels=5,
        feat_channels=[64, 64],
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
        norm_cfg=norm,
        legacy=False,  # True writes over the points
    ),
    pts_middle_encoder=dict(_delete_=True, type='PillarScatter', in_channels=64),
    pts_backbone=dict(in_channels=64, out_channels=[64, 128, 256], layer_nums=[3, 5, 5], layer_strides=[2, 2, 2]),
    pts_neck=dict(in_channels=[64, 128, 256], out_channels=[128, 128, 128], upsample_strides=[0.5, 1, 2]),
    bbox_head=dict(
        in_channels=384,
        train_cfg=dict(out_size_factor=4),
        test_cfg=dict(out_size_factor=4),
        bbox_coder=dict(out_size_factor=4),
    ),
)
_filters = [
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.class_names),
]
train_pipeline = [*_base_.train_pipeline[:5], *_filters, _base_.shuffle, _base_.pack]
test_pipeline = [_base_.load_points, _filters[0], _base_.pack]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
