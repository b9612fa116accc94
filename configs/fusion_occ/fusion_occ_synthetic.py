# FusionOcc, small: trains on the synthetic city on two CPU cores in minutes and answers on the full 200 x 200 x 16
# grid. The same detector as configs/_base_/models/fusion_occ.py. What makes it small: a thin ResNet on 160 x 448
# pixels, LiDAR voxels of 0.2 m, the 3D encoder at 0.8 m with the answer brought back to 0.4 m beside the LiDAR's own
# 0.4 m features, and a loss that looks at a part of the free voxels.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/synthetic_city_occ.py',
    '../_base_/schedules/adamw_cosine.py',
]

# True: only voxels that a camera observes are supervised. The metric has its own field (eval_mask) and
# reports all masks anyway.
use_mask = False

point_cloud_range = list(_base_.occ_range)  # m, ego frame
depth_range = list(_base_.depth_config.depth)  # m: from, to, step
num_depth_bins = 44
camera_channels = 32
lidar_channels = 24
num_classes = 18
# About (8000 / voxels a sample)^0.1 in a city of denser labels; "free", ten times all others together and more, has a
# weight that leaves it most of the loss. Stronger weights make the network see rare things everywhere. Order of
# occ3d.CLASS_NAMES.
class_weight = [1.4, 1.25, 1.4, 1.2, 1.15, 1.2, 1.4, 1.25, 1.5, 1.2, 1.2, 1.0, 1.2, 1.1, 1.0, 1.0, 1.0, 0.65]
# Of the pixels: the square of those, without which a few hundred steps learn nothing of small things.
image_class_weight = [1.9, 1.6, 2.0, 1.4, 1.3, 1.4, 2.0, 1.6, 2.4, 1.4, 1.4, 1.0, 1.4, 1.2, 1.0, 1.0, 1.0, 1.0]

model = dict(
    type='FusionOCC',
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='rgb'),
    use_mask=use_mask,
    use_camera=True,
    use_lidar=True,
    num_adj=0,
    num_classes=num_classes,
    key_ego='lidar',
    free_prior=0.5,
    lidar_out_channel=lidar_channels,
    out_dim=24,
    # Higher than published: with a few hundred steps the 2D labels are the shortest way to teach the image branch.
    depth_loss_weight=0.2,
    seg_loss_weight=0.5,
    img_seg_head=dict(type='PixelSegHead', in_channels=(16, 48), channels=32),
    point_painting=True,
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(0, 1, 3),  # strides 4, 8 and 32
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(
        type='FPN_LSS',
        in_channels=32 + 128,
        out_channels=48,
        input_feature_index=(1, 2),
        scale_factor=4,
        extra_upsample=None,
    ),
    img_view_transformer=dict(
        type='CrossModalLSS',
        grid_config=dict(x=[-40.0, 40.0, 0.8], y=[-40.0, 40.0, 0.8], z=[-1.0, 5.4, 0.8], depth=depth_range),
        input_size=_base_.data_config.input_size,
        in_channels=48,
        mid_channels=32,
        feature_channels=camera_channels,
        depth_channels=num_depth_bins,
        seg_num_classes=num_classes,
        seg_class_weight=image_class_weight,
        depthnet_cfg=dict(aspp_mid_channels=0),
        depth_drop_prob=0.2,
        camera_norm='scale',
        downsample=_base_.feature_stride,
    ),
    lidar_encoder=dict(
        type='CustomSparseEncoder',
        in_channels=6,
        point_cloud_range=point_cloud_range,
        voxel_size=[0.2, 0.2, 0.2],
        base_channels=32,
        encoder_channels=((24, 24), (24, 24)),  # one stride of 2: 0.4 m
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.1),  # the published 0.01 needs thousands of steps
        input_scale=[1 / 40, 1 / 40, 1 / 3, 1 / 64, 1 / 16, 1 / 2],  # x, y, z in m, intensity, ring, age in s
        voxel_offsets=True,
    ),
    volume_downsample=dict(out_channels=32, stride=2),  # 0.8 m
    coarse_camera=True,
    final_kernel=1,
    occ_encoder_backbone=dict(
        type='CustomResNet3D', num_layer=[1, 1, 2], num_channels=[32, 48, 96], stride=[1, 2, 2], entry_kernel=1
    ),
    occ_encoder_neck=dict(type='LSSFPN3D', in_channels=32 + 48 + 96, out_channels=32),
    occ_upsample=dict(type='SkipUpsample3D', out_channels=24, scale_factor=2),  # 0.4 m, the label grid
    loss_occ=dict(
        type='OccupancyLoss',
        class_weight=class_weight,
        free_keep=0.05,
        near_free_keep=0.5,
        lovasz_weight=1.0,
        lovasz_samples=24000,
    ),
)

# -------------------------------------------------------------------------------------------------------- schedule
image_epochs = 0  # so many of the first epochs teach the image branch alone, in a fifth of the time
max_epochs = 5
lr = 1.2e-2
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
train_dataloader = dict(batch_size=1)  # of a few minutes' samples more is learnt in steps of one than of two
# Of a few hundred steps each must count: kernels by orthogonalised momentum, norms and biases by AdamW with a memory
# of 100 steps.
optim_wrapper = dict(optimizer=dict(type='MuonAdamW', betas=(0.9, 0.99)))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),  # iterations
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=image_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]

custom_hooks = [dict(type='ImagePretrainHook', epochs=image_epochs, pipeline=_base_.image_train_pipeline)]

channels_last = True  # a tenth faster on a CPU

linked_fields = [dict(name='use_mask', value=use_mask, to='model.use_mask')]
linked_fields_schedule = [
    dict(name='max_epochs', value=max_epochs, to=['train_cfg.max_epochs', 'param_scheduler.1.end']),
    dict(name='image_epochs', value=image_epochs, to=['custom_hooks.0.epochs', 'param_scheduler.1.begin']),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
