# BEVFusion as published: Swin-T, DepthLSS, voxels of 0.075 m, SECOND, TransFusionHead; camera and LiDAR, detection.
# What depends on range and voxel size (sparse_shape, xbound, grid_size, ...) is filled in from voxelize_cfg.
# Source: Z. Liu et al., "BEVFusion", ICRA 2023; mmdet3d 1.4.0, projects/BEVFusion.
_base_ = ['../datasets/nuscenes_bevfusion.py']

point_cloud_range = _base_.point_cloud_range
image_size = _base_.image_size
voxel_size = [0.075, 0.075, 0.2]  # m
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]  # m
out_size_factor = 8

data_preprocessor = dict(
    type='Det3DDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=False,
    pad_size_divisor=32,
    voxelize_cfg=dict(
        max_num_points=10,
        point_cloud_range=point_cloud_range,
        voxel_size=voxel_size,
        max_voxels=[120000, 160000],
        voxelize_reduce=True,
    ),
)
img_backbone = dict(
    type='mmdet.SwinTransformer',
    embed_dims=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    mlp_ratio=4,
    qkv_bias=True,
    qk_scale=None,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.2,
    patch_norm=True,
    out_indices=[1, 2, 3],
    with_cp=False,
    convert_weights=True,
)
img_neck = dict(
    type='GeneralizedLSSFPN',
    in_channels=[192, 384, 768],
    out_channels=256,
    start_level=0,
    num_outs=3,
    norm_cfg=dict(type='BN2d', requires_grad=True),
    act_cfg=dict(type='ReLU', inplace=True),
    upsample_cfg=dict(mode='bilinear', align_corners=False),
)
view_transform = dict(
    type='DepthLSSTransform',
    in_channels=256,
    out_channels=80,
    image_size=image_size,
    feature_size=[32, 88],
    zbound=[-10.0, 10.0, 20.0],
    dbound=[1.0, 60.0, 0.5],
    downsample=2,
)
pts_middle_encoder = dict(
    type='BEVFusionSparseEncoder',
    in_channels=5,
    base_channels=16,
    output_channels=128,
    order=('conv', 'norm', 'act'),
    encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
    encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
    norm_cfg=dict(type='BN1d', eps=0.001, momentum=0.01),
    block_type='basicblock',
)
pts_backbone = dict(
    type='SECOND',
    in_channels=256,
    out_channels=[128, 256],
    layer_nums=[5, 5],
    layer_strides=[1, 2],
    norm_cfg=dict(type='BN', eps=0.001, momentum=0.01),
    conv_cfg=dict(type='Conv2d', bias=False),
)
pts_neck = dict(
    type='SECONDFPN',
    in_channels=[128, 256],
    out_channels=[256, 256],
    upsample_strides=[1, 2],
    norm_cfg=dict(type='BN', eps=0.001, momentum=0.01),
    upsample_cfg=dict(type='deconv', bias=False),
    use_conv_for_no_stride=True,
)
bbox_head = dict(
    type='TransFusionHead',
    num_proposals=200,
    auxiliary=True,
    in_channels=512,
    hidden_channel=128,
    class_names=_base_.class_names,
    nms_kernel_size=3,
    bn_momentum=0.1,
    num_decoder_layers=1,
    decoder_layer=dict(
        type='TransformerDecoderLayer',
        self_attn_cfg=dict(embed_dims=128, num_heads=8, dropout=0.1),
        cross_attn_cfg=dict(embed_dims=128, num_heads=8, dropout=0.1),
        ffn_cfg=dict(
            embed_dims=128,
            feedforward_channels=256,
            num_fcs=2,
            ffn_drop=0.1,
            act_cfg=dict(type='ReLU', inplace=True),
        ),
        norm_cfg=dict(type='LN'),
        pos_encoding_cfg=dict(input_channel=2, num_pos_feats=128),
    ),
    train_cfg=dict(
        dataset='nuScenes',
        out_size_factor=out_size_factor,
        gaussian_overlap=0.1,
        min_radius=2,
        pos_weight=-1,
        code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2],
        assigner=dict(
            type='HungarianAssigner3D',
            iou_calculator=dict(type='BboxOverlaps3D', coordinate='lidar'),
            cls_cost=dict(type='mmdet.FocalLossCost', gamma=2.0, alpha=0.25, weight=0.15),
            reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25),
            iou_cost=dict(type='IoU3DCost', weight=0.25),
        ),
    ),
    test_cfg=dict(dataset='nuScenes', out_size_factor=out_size_factor, nms_type=None),
    common_heads=dict(center=[2, 2], height=[1, 2], dim=[3, 2], rot=[2, 2], vel=[2, 2]),
    bbox_coder=dict(
        type='TransFusionBBoxCoder',
        post_center_range=post_center_range,
        score_threshold=0.0,
        out_size_factor=out_size_factor,
        code_size=10,
    ),
    loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, reduction='mean', loss_weight=1.0),
    loss_heatmap=dict(type='mmdet.GaussianFocalLoss', reduction='mean', loss_weight=1.0),
    loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
)
model = dict(
    type='BEVFusion',
    data_preprocessor=data_preprocessor,
    pts_middle_encoder=pts_middle_encoder,
    pts_backbone=pts_backbone,
    pts_neck=pts_neck,
    bbox_head=bbox_head,
    img_backbone=img_backbone,
    img_neck=img_neck,
    view_transform=view_transform,
    fusion_layer=dict(type='ConvFuser', in_channels=[80, 256], out_channels=256),
)
