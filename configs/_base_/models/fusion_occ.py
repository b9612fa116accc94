# FusionOcc at its published size: Swin-B on 6 x 512 x 1408 pixels, two camera frames, LiDAR voxels of 0.05 m,
# answers on 200 x 200 x 16 voxels of 0.4 m. Parameter names and shapes are those of the published checkpoint.
# Source: FusionOcc, ACM MM 2024 (doi 10.1145/3664647.3681293), and its public config.
point_cloud_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # m, ego frame
lidar_voxel_size = [0.05, 0.05, 0.05]  # m; the LiDAR encoder halves it three times
input_size = (512, 1408)  # (H, W) of the network's images
num_adj = 1  # camera frames before the key frame
num_classes = 18  # the last one is "free"
grid_config = dict(
    x=[-40.0, 40.0, 0.4],  # m: from, to, step
    y=[-40.0, 40.0, 0.4],
    z=[-1.0, 5.4, 0.4],
    depth=[1.0, 45.0, 0.5],
)
num_depth_bins = 88
camera_channels = 32  # of the lifted volume of a frame
lidar_channels = 32
encoder_channels = 64

# True: only voxels that a camera observes are supervised. The metric's mask is a field of its own (eval_mask).
use_mask = True

# Activation checkpointing: recompute in the backward pass instead of keeping. Image backbone (as published); the 3D
# encoders, which saves some 10 GB a sample for a fifth more time.
with_cp = True
with_cp_3d = False

model = dict(
    type='FusionOCC',
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='bgr-with-rgb-stats'),
    use_mask=use_mask,
    num_adj=num_adj,
    num_classes=num_classes,
    point_cloud_range=point_cloud_range,
    voxel_size=lidar_voxel_size,
    lidar_in_channel=5,
    lidar_out_channel=lidar_channels,
    out_dim=encoder_channels,
    use_predicter=True,
    fuse_loss_weight=0.1,
    img_backbone=dict(
        type='SwinTransformer',
        pretrain_img_size=224,
        embed_dims=128,
        patch_size=4,
        window_size=12,
        mlp_ratio=4,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        strides=(4, 2, 2, 2),
        out_indices=(2, 3),
        qkv_bias=True,
        patch_norm=True,
        drop_path_rate=0.1,
        return_stereo_feat=True,
        with_cp=with_cp,
    ),
    img_neck=dict(
        type='FPN_LSS',
        in_channels=512 + 1024,
        out_channels=256,
        extra_upsample=None,
        input_feature_index=(0, 1),
        scale_factor=2,
    ),
    img_view_transformer=dict(
        type='CrossModalLSS',
        grid_config=grid_config,
        input_size=input_size,
        in_channels=256,
        mid_channels=128,
        feature_channels=camera_channels,
        depth_channels=num_depth_bins,
        seg_num_classes=num_classes,
        depthnet_cfg=dict(aspp_mid_channels=96),
        downsample=16,
        seg_down_sample=16,
        sid=False,
        collapse_z=False,
    ),
    pre_process=dict(
        type='CustomResNet3D',
        num_layer=[1],
        num_channels=[camera_channels],
        stride=[1],
        backbone_output_ids=[0],
        with_cp=with_cp_3d,
    ),
    occ_encoder_backbone=dict(
        type='CustomResNet3D',
        numC_input=camera_channels * (num_adj + 1) + lidar_channels,
        num_layer=[1, 2, 3],
        num_channels=[encoder_channels, encoder_channels * 2, encoder_channels * 4],
        stride=[1, 2, 2],
        backbone_output_ids=[0, 1, 2],
        with_cp=with_cp_3d,
    ),
    occ_encoder_neck=dict(
        type='LSSFPN3D', in_channels=encoder_channels * 7, out_channels=encoder_channels, with_cp=with_cp_3d
    ),
    loss_occ=dict(type='OccupancyLoss', loss_weight=1.0),
)

linked_fields = [
    dict(name='use_mask', value=use_mask, to='model.use_mask'),
    dict(name='with_cp', value=with_cp, to='model.img_backbone.with_cp'),
    dict(
        name='with_cp_3d',
        value=with_cp_3d,
        to=['model.pre_process.with_cp', 'model.occ_encoder_backbone.with_cp', 'model.occ_encoder_neck.with_cp'],
    ),
]
