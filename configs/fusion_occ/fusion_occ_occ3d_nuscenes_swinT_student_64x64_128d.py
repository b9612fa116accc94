# A third-party student of FusionOcc: Swin-T, one camera frame, 64 channels each from cameras and LiDAR.
_base_ = './fusion_occ.py'

num_adj = 0
camera_channels = 64
lidar_channels = 64
encoder_channels = [128, 192, 256]
out_channels = 128

model = dict(
    num_adj=num_adj,
    lidar_out_channel=lidar_channels,
    out_dim=out_channels,
    img_backbone=dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
    img_neck=dict(in_channels=384 + 768, out_channels=128),
    img_view_transformer=dict(
        in_channels=128,
        mid_channels=64,
        feature_channels=camera_channels,
        depthnet_cfg=dict(aspp_mid_channels=48),
    ),
    pre_process=dict(num_channels=[camera_channels]),
    occ_encoder_backbone=dict(numC_input=camera_channels + lidar_channels, num_channels=encoder_channels),
    occ_encoder_neck=dict(in_channels=sum(encoder_channels), out_channels=out_channels),
)

images = dict(data_config=_base_.data_config, num_adjacent=num_adj)
train_pipeline = [dict(type='PrepareImageInputs', is_train=True, **images), *_base_.train_pipeline[1:]]
test_pipeline = [dict(type='PrepareImageInputs', **images), *_base_.test_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
