# FusionOcc, small: trains on the synthetic city on two CPU cores in minutes and answers on the full 200 x 200 x 16
# grid. The same detector as configs/_base_/models/fusion_occ.py. What makes it small: a thin ResNet on 160 x 448
# pixels, LiDAR voxels of 0.2 m, the 3D encoder at 0.8 m with the answer brought back to 0.4 m beside the LiDAR's own
# 0.4 m features, and a loss that looks at a part of the free voxels.
_base_ = ['../_base_/default_runtime.py', '../_base_/schedules/adamw_cosine.py']

# True: only voxels that a camera observes are supervised. The metric has its own field (test_evaluator.eval_mask) and
# reports all masks anyway.
use_mask = False

data_root = 'data/synthetic_city/'
dataset_type = 'NuScenesOccDataset'
point_cloud_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # m, ego frame
input_size = (160, 448)  # (H, W) of the network's images; the city's are 450 x 800
depth_range = [1.0, 45.0, 1.0]  # m: from, to, step
num_depth_bins = 44
num_adjacent_clouds = 7  # key frames before the current one whose points are added
stride = 8  # image pixels per feature pixel
camera_channels = 16
lidar_channels = 16
num_classes = 18
# About (8000 / voxels a sample)^0.35 in the city, and for "free", ten times all others together, a weight that leaves
# it half of the loss: in a few hundred steps the rare classes would else not be learnt. Order of occ3d.CLASS_NAMES.
class_weight = [3.0, 2.5, 3.2, 1.3, 1.3, 1.9, 3.0, 2.4, 4.5, 1.6, 1.4, 1.0, 1.7, 1.4, 1.0, 0.9, 1.0, 0.15]

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
    out_dim=16,
    # Higher than published: with a few hundred steps the 2D labels are the shortest way to teach the image branch.
    depth_loss_weight=0.2,
    seg_loss_weight=0.5,
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(type='FPN_LSS', in_channels=64 + 128, out_channels=48, input_feature_index=(0, 1), scale_factor=2),
    img_view_transformer=dict(
        type='CrossModalLSS',
        grid_config=dict(x=[-40.0, 40.0, 0.4], y=[-40.0, 40.0, 0.4], z=[-1.0, 5.4, 0.4], depth=depth_range),
        input_size=input_size,
        in_channels=48,
        mid_channels=32,
        feature_channels=camera_channels,
        depth_channels=num_depth_bins,
        seg_num_classes=num_classes,
        depthnet_cfg=dict(aspp_mid_channels=0),
        depth_drop_prob=0.2,
        camera_norm='scale',
        downsample=stride,
    ),
    lidar_encoder=dict(
        type='CustomSparseEncoder',
        in_channels=6,
        point_cloud_range=point_cloud_range,
        voxel_size=[0.2, 0.2, 0.2],
        base_channels=16,
        encoder_channels=((16, 16), (16, 16)),  # one stride of 2: 0.4 m
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.1),  # the published 0.01 needs thousands of steps
        input_scale=[1 / 40, 1 / 40, 1 / 3, 1 / 64, 1 / 16, 1 / 2],  # x, y, z in m, intensity, ring, age in s
    ),
    volume_downsample=dict(out_channels=32, stride=2),  # 0.8 m
    occ_encoder_backbone=dict(type='CustomResNet3D', num_layer=[1, 2, 2], num_channels=[32, 64, 96], stride=[1, 2, 2]),
    occ_encoder_neck=dict(type='LSSFPN3D', in_channels=32 + 64 + 96, out_channels=32),
    occ_upsample=dict(type='SkipUpsample3D', out_channels=16, scale_factor=2),  # 0.4 m, the label grid
    loss_occ=dict(
        type='OccupancyLoss',
        class_weight=class_weight,
        free_keep=0.05,
        near_free_keep=0.5,
        lovasz_weight=1.0,
        lovasz_samples=30000,
    ),
)

# ---------------------------------------------------------------------------------------------------------- data
data_config = dict(
    input_size=input_size,
    resize=(-0.03, 0.06),  # on top of input width / file width
    rot=(0.0, 0.0),  # degrees
    flip=True,
    crop_h=(0.0, 0.0),
    resize_test=0.0,
)
bda_aug_conf = dict(rot_lim=(0.0, 0.0), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)

# The steps of each sensor by themselves, so that the single-sensor configs are put together from the same ones.
read_lidar = [dict(type='LoadLidarPoints')]
read_labels = [dict(type='LoadOccGTFromFile')]
to_ego = [dict(type='PointsLidarToEgo')]
lidar_to_ego = [
    dict(type='FuseAdjacentPoints', num_adjacent=num_adjacent_clouds, with_time=True),
    *to_ego,
    dict(type='EgoPointsRangeFilter', point_cloud_range=point_cloud_range),
]
read_cameras_train = [dict(type='PrepareImageInputs', data_config=data_config, is_train=True)]
read_cameras_test = [dict(type='PrepareImageInputs', data_config=data_config)]
depth_and_class_of_pixels = [
    dict(type='LoadLidarSegLabels'),
    dict(type='PointToMultiViewDepth', grid_config=dict(depth=depth_range), downsample=stride, with_segs=True),
]
depth_of_pixels = [dict(type='PointToMultiViewDepth', grid_config=dict(depth=depth_range), downsample=stride)]
flip = [dict(type='BEVAug', bda_aug_conf=bda_aug_conf, is_train=True)]
no_flip = [dict(type='BEVAug', bda_aug_conf=bda_aug_conf)]
pack = [dict(type='PackOccInputs')]

train_pipeline = read_cameras_train + read_labels + read_lidar + depth_and_class_of_pixels + lidar_to_ego + flip + pack
test_pipeline = read_cameras_test + read_labels + read_lidar + depth_of_pixels + lidar_to_ego + no_flip + pack
# Camera only: LiDAR is a label of the depth in training and absent in testing. LiDAR only: no images.
camera_train_pipeline = read_cameras_train + read_labels + read_lidar + depth_and_class_of_pixels + to_ego + flip + pack
camera_test_pipeline = read_cameras_test + read_labels + no_flip + pack
lidar_train_pipeline = read_labels + read_lidar + lidar_to_ego + flip + pack
lidar_test_pipeline = read_labels + read_lidar + lidar_to_ego + no_flip + pack

train_dataloader = dict(
    # Two samples, not one: torch's CPU convolutions of small volumes are several times slower in batches of one.
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        num_adjacent=num_adjacent_clouds,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_val.pkl',
        num_adjacent=num_adjacent_clouds,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='OccupancyMetric', eval_mask='none')
test_evaluator = val_evaluator

# -------------------------------------------------------------------------------------------------------- schedule
max_epochs = 5
lr = 3e-3
train_cfg = dict(val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.99)))  # a memory of 100 steps: there are only a few hundred
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),  # iterations
    dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, convert_to_iter_based=True
    ),
]

linked_fields = [
    dict(name='use_mask', value=use_mask, to='model.use_mask'),
    dict(
        name='data_root',
        value=data_root,
        to=[f'{loader}_dataloader.dataset.data_root' for loader in ('train', 'val', 'test')],
    ),
]
