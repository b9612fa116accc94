# RenderOcc at its published size: Swin-B on 6 x 512 x 1408 pixels of three key frames (the third for stereo depth
# alone), voxels of 0.4 m. Parameter names and shapes are those of the published checkpoint.
# Source: Pan et al., "RenderOcc", ICRA 2024, and its public config renderocc-7frame; "UniOcc", 2023 (arXiv 2306.09117).
point_cloud_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # m, ego frame
voxel_size = 0.4  # m
input_size = (512, 1408)  # (H, W) of the network's images
num_adj = 1  # camera frames before the key frame whose volumes are used; stereo depth looks at one more
grid_config = dict(
    x=[-40.0, 40.0, 0.4],  # m: from, to, step
    y=[-40.0, 40.0, 0.4],
    z=[-1.0, 5.4, 0.4],
    depth=[1.0, 45.0, 0.5],
)
image_channels = 512
voxel_channels = 32

# Only the 3D losses know a mask: True: voxels that a camera observes. The metric has its own field (eval_mask).
use_mask = False
# recompute in the backward pass instead of keeping
with_cp = True

model = dict(
    type='RenderOcc',
    # the published weights saw BGR images normalised with RGB statistics
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='bgr-with-rgb-stats'),
    num_adj=num_adj,
    out_dim=voxel_channels,
    use_3d_loss=False,
    use_mask=use_mask,
    use_lss_depth_loss=True,
    balance_cls_weight=True,
    final_softplus=True,
    test_threshold=8.5,
    initial_opacity=0.02,  # None: as published, where rays see nothing at first
    nerf_head=dict(
        type='NerfHead',
        point_cloud_range=point_cloud_range,
        voxel_size=voxel_size,
        radius=39,  # m, of the published sampling
        sampling='aabb',  # 'renderocc': the published samples and what it takes for a depth
        use_depth_sup=True,
        balance_cls_weight=True,
        weight_depth=1.0,
        weight_semantic=1.0,
        weight_entropy_last=0.01,
        weight_distortion=0.01,
    ),
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
        out_channels=image_channels,
        extra_upsample=None,
        input_feature_index=(0, 1),
        scale_factor=2,
    ),
    img_view_transformer=dict(
        type='LSSViewTransformerBEVStereo',
        grid_config=grid_config,
        input_size=input_size,
        in_channels=image_channels,
        out_channels=voxel_channels,
        sid=False,
        collapse_z=False,
        loss_depth_weight=0.05,
        depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96, stereo=True, bias=5.0),
        downsample=16,
    ),
    pre_process=dict(
        type='CustomResNet3D',
        numC_input=voxel_channels,
        num_layer=[1],
        num_channels=[voxel_channels],
        stride=[1],
        backbone_output_ids=[0],
    ),
    img_bev_encoder_backbone=dict(
        type='CustomResNet3D',
        numC_input=voxel_channels * (num_adj + 1),
        num_layer=[1, 2, 4],
        num_channels=[voxel_channels, voxel_channels * 2, voxel_channels * 4],
        stride=[1, 2, 2],
        backbone_output_ids=[0, 1, 2],
    ),
    img_bev_encoder_neck=dict(type='LSSFPN3D', in_channels=voxel_channels * 7, out_channels=voxel_channels),
)

linked_fields = [
    dict(name='use_mask', value=use_mask, to='model.use_mask'),
    dict(name='with_cp', value=with_cp, to='model.img_backbone.with_cp'),
]
