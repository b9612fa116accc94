# FB-OCC, small: trains on the synthetic city on two CPU cores and answers on the full 200 x 200 x 16 grid, with eight
# remembered frames. The detector of the published config; what makes it small is the image size and the channels. It
# starts from an image branch that knows depth, as the published one does: --load-from a checkpoint of
# fbocc_synthetic_depth_pretrain.py.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/synthetic_city_occ.py',
    '../_base_/schedules/adamw_cosine.py',
]

use_mask = True
eval_mask = 'lidar'

input_size = _base_.data_config.input_size  # (160, 448), (H, W) of the network's images
grid_config = dict(x=[-40.0, 40.0, 0.8], y=[-40.0, 40.0, 0.8], z=[-1.0, 5.4, 0.8], depth=[1.0, 45.0, 1.0])  # m
query_grid_config = dict(grid_config, z=[-1.0, 5.4, 1.6])
num_depth_bins = 44
image_channels = 48
voxel_channels = 24
encoder_channels = [24, 48, 96]
head_channels = 48  # of 32 the head makes 8 for 19 classes: now and then one of them was never told
history_frames = 8
bn3d = dict(type='BN3d')

model = dict(
    type='FBOCC',
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='rgb'),
    use_mask=use_mask,
    mask='mask_lidar',  # the city's labels are what the LiDAR can tell
    use_depth_supervision=True,
    fix_void=True,
    history_cat_num=history_frames,
    single_bev_num_channels=voxel_channels,
    history_norm_cfg=bn3d,
    history_init='mean',
    history_dtype='bfloat16',
    voxel_center=True,
    readd=True,
    amp_3d=True,
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(2, 3),  # strides 16 and 32
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(type='CustomFPN', in_channels=[64, 128], out_channels=image_channels, num_outs=1, out_ids=[0]),
    depth_net=dict(
        type='CM_DepthNet',
        in_channels=image_channels,
        context_channels=voxel_channels,
        depth_channels=num_depth_bins,
        mid_channels=image_channels,
        use_aspp=False,
        camera_norm='scale',
        input_size=input_size,
        downsample=16,
        grid_config=grid_config,
        loss_depth_weight=0.5,
    ),
    forward_projection=dict(
        type='LSSViewTransformerFunction3D', grid_config=grid_config, input_size=input_size, downsample=16
    ),
    backward_projection=dict(
        type='BackwardProjection',
        bev_h=100,
        bev_w=100,
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
                        dict(type='BEVSelfAttention', embed_dims=voxel_channels, num_heads=4),
                        dict(
                            type='DA_SpatialCrossAttention',
                            embed_dims=voxel_channels,
                            dbound=grid_config['depth'],
                            deformable_attention=dict(num_heads=4, num_points=8, num_Z_anchors=4),
                        ),
                    ],
                    ffn_cfgs=dict(feedforward_channels=2 * voxel_channels, ffn_drop=0.0),
                ),
            ),
        ),
        positional_encoding=dict(
            type='CustormLearnedPositionalEncoding',
            num_feats=voxel_channels // 2,
            row_num_embed=100,
            col_num_embed=100,
        ),
    ),
    img_bev_encoder_backbone=dict(
        type='VoxelResNet3D',
        depth=10,
        n_input_channels=voxel_channels,
        block_inplanes=encoder_channels,
        block_strides=[1, 2, 2],
        norm_cfg=bn3d,
    ),
    img_bev_encoder_neck=dict(type='FPN3D', in_channels=encoder_channels, out_channels=head_channels, norm_cfg=bn3d),
    occupancy_head=dict(
        type='OccHead',
        in_channels=head_channels,
        num_level=3,
        out_channel=19,
        empty_idx=18,
        soft_weights=True,
        norm_cfg=bn3d,
        loss_weight_cfg=dict(loss_voxel_ce_weight=0.1),  # the published 1.0 drowns the others in a short training
    ),
)

depth_config = dict(depth=grid_config['depth'])
train_pipeline = [
    _base_.read_images_train,
    _base_.flip_train,
    _base_.load_points,
    dict(type='PointToMultiViewDepth', grid_config=depth_config, downsample=16),
    _base_.load_labels,
    dict(type='PackOccInputs', exclude_keys=('points',)),
]
test_pipeline = [_base_.read_images_test, _base_.flip_test, _base_.load_labels, _base_.pack]
train_dataloader = dict(
    batch_size=1,  # of a few minutes' samples more is learnt in steps of one than of two
    sampler=dict(shuffle=False),
    batch_sampler=dict(type='SequenceBatchSampler', interleave=16),
    dataset=dict(pipeline=train_pipeline, num_adjacent=0, sequences_split_num=1),
)
val_dataloader = dict(
    batch_sampler=dict(type='SequenceTestBatchSampler'),
    dataset=dict(pipeline=test_pipeline, num_adjacent=0, sequences_split_num=1),
)
test_dataloader = val_dataloader

custom_hooks = [dict(type='HistoryHook')]  # from the first step: a short training has no epochs to lose

max_epochs = 3
lr = 1.2e-2
train_cfg = dict(val_interval=max_epochs)
slow = dict(lr_mult=0.1)  # occupancy would spoil the depth that the image branch has learnt
optim_wrapper = dict(
    optimizer=dict(type='MuonAdamW', betas=(0.9, 0.99)),  # see fusion_occ_synthetic.py
    paramwise_cfg=dict(custom_keys=dict(img_backbone=slow, img_neck=slow, depth_net=slow)),
)

channels_last = True

linked_fields = [dict(name='use_mask', value=use_mask, to='model.use_mask')]
