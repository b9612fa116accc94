# FB-OCC at its published size: ResNet-50 on 6 x 256 x 704 pixels, voxels of 0.8 m, 16 remembered frames, answers on
# 200 x 200 x 16 voxels of 0.4 m. Parameter names and shapes are those of the published checkpoint.
# Source: Li et al., "FB-OCC", 2023, and its public config fbocc-r50-cbgs_depth_16f_16x4_20e.
point_cloud_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # m, ego frame at CAM_FRONT's moment
input_size = (256, 704)  # (H, W) of the network's images
grid_config = dict(
    x=[-40.0, 40.0, 0.8],  # m: from, to, step
    y=[-40.0, 40.0, 0.8],
    z=[-1.0, 5.4, 0.8],
    depth=[2.0, 42.0, 0.5],
)
# where the queries of the backward projection stand: cells of the ground plane, four heights each
query_grid_config = dict(grid_config, z=[-1.0, 5.4, 1.6])
num_depth_bins = 80
bev_size = (100, 100)  # cells along Y and X
image_channels = 256
voxel_channels = 80
encoder_channels = [64, 128, 256]
head_channels = 256
history_frames = 16

# True: only voxels that a camera observes are supervised. The metric's mask is a field of its own (eval_mask).
use_mask = True

# Batch normalisation. The published 3D part and the history fusion are synchronised over processes in any case: four
# volumes a device are few. What the switch sync_bn of a config decides is the rest, the image branch.
bn3d = dict(type='SyncBN', requires_grad=True)

model = dict(
    type='FBOCC',
    # the published weights saw BGR images normalised with RGB statistics
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='bgr-with-rgb-stats'),
    use_mask=use_mask,
    use_depth_supervision=True,
    fix_void=True,
    do_history=False,  # HistoryHook switches it on
    history_cat_num=history_frames,
    single_bev_num_channels=voxel_channels,
    history_norm_cfg=bn3d,
    readd=True,
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        with_cp=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='ckpts/resnet50-0676ba61.pth'),
    ),
    img_neck=dict(type='CustomFPN', in_channels=[1024, 2048], out_channels=image_channels, num_outs=1, out_ids=[0]),
    depth_net=dict(
        type='CM_DepthNet',
        in_channels=image_channels,
        context_channels=voxel_channels,
        depth_channels=num_depth_bins,
        mid_channels=512,
        downsample=16,
        grid_config=grid_config,
        loss_depth_weight=1.0,
        with_cp=True,
    ),
    forward_projection=dict(
        type='LSSViewTransformerFunction3D', grid_config=grid_config, input_size=input_size, downsample=16
    ),
    backward_projection=dict(
        type='BackwardProjection',
        bev_h=bev_size[0],
        bev_w=bev_size[1],
        in_channels=voxel_channels,
        out_channels=voxel_channels,
        transformer=dict(
            type='BEVFormer',
            embed_dims=voxel_channels,
            encoder=dict(
                type='bevformer_encoder',
                num_layers=1,
                grid_config=query_grid_config,
                data_config=dict(input_size=input_size),
                transformerlayers=dict(
                    type='BEVFormerEncoderLayer',
                    attn_cfgs=[
                        dict(type='BEVSelfAttention', embed_dims=voxel_channels),
                        dict(
                            type='DA_SpatialCrossAttention',
                            embed_dims=voxel_channels,
                            dbound=grid_config['depth'],
                            deformable_attention=dict(
                                type='DA_MSDeformableAttention',
                                embed_dims=voxel_channels,
                                num_points=8,
                                num_Z_anchors=4,
                            ),
                        ),
                    ],
                    ffn_cfgs=dict(feedforward_channels=4 * voxel_channels, ffn_drop=0.0),
                    operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
                ),
            ),
        ),
        positional_encoding=dict(
            type='CustormLearnedPositionalEncoding',
            num_feats=voxel_channels // 2,
            row_num_embed=bev_size[0],
            col_num_embed=bev_size[1],
        ),
    ),
    img_bev_encoder_backbone=dict(
        type='VoxelResNet3D',
        depth=18,
        n_input_channels=voxel_channels,
        block_inplanes=encoder_channels,
        block_strides=[1, 2, 2],
        with_cp=True,
        norm_cfg=bn3d,
    ),
    img_bev_encoder_neck=dict(
        type='FPN3D', in_channels=encoder_channels, out_channels=head_channels, with_cp=True, norm_cfg=bn3d
    ),
    occupancy_head=dict(
        type='OccHead',
        in_channels=head_channels,
        num_level=3,
        out_channel=19,  # void, Occ3D's 17 classes, free
        empty_idx=18,
        soft_weights=True,
        use_deblock=True,
        use_focal_loss=True,
        balance_cls_weight=True,
        with_cp=True,
        norm_cfg=bn3d,
        loss_weight_cfg=dict(
            loss_voxel_ce_weight=1.0,
            loss_voxel_sem_scal_weight=1.0,
            loss_voxel_geo_scal_weight=1.0,
            loss_voxel_lovasz_weight=1.0,
        ),
    ),
)

linked_fields = [dict(name='use_mask', value=use_mask, to='model.use_mask')]
