# The synthetic city (tools/create_data.py synthetic_city) at a size that trains on two CPU cores: images of 800 x 450
# pixels scaled to 448 x 252, of which the lowest 160 rows stay: the road, and some 6 degrees above the horizon.
# The images of the key frame and of earlier ones, which paint points; the LiDAR points of up to eight key frames, as
# published, and of the sweep halfway between each two, with their age. (All sweeps, fuse_points.sweeps, would fill in
# what the cameras see alone.)
_base_ = ['./nuscenes_occ.py']

data_root = 'data/synthetic_city'
eval_mask = 'none'
depth_config = dict(depth=(1.0, 45.0, 1.0))  # m: from, to, step

data_config = dict(
    input_size=(160, 448),  # (H, W) of the network's images
    resize=(-0.03, 0.06),
    rot=(0.0, 0.0),
    flip=True,
    crop_h=(0.0, 0.0),
    photometric=dict(contrast=(0.8, 1.2), brightness=(0.8, 1.2), channel_gain=(0.93, 1.07)),
)
lidar_frames = 7
feature_stride = 8  # image pixels per pixel of the feature maps

read_images_train = dict(type='PrepareImageInputs', data_config=data_config, is_train=True)
read_images_test = dict(type='PrepareImageInputs', data_config=data_config)
# Earlier images paint points: those of a second ago, to save the training's time; in tests those of two seconds.
read_frames_train = dict(read_images_train, num_adjacent=[2])
read_frames_test = dict(read_images_test, num_adjacent=[1, 2, 3, 4])
fuse_points = dict(type='FuseAdjacentPoints', num_adjacent=lidar_frames, load_dim=5, sweeps=[4], with_time=True)
flip_train = dict(type='BEVAug', bda_aug_conf=_base_.bda_aug_conf, is_train=True)
flip_test = dict(type='BEVAug', bda_aug_conf=_base_.bda_aug_conf)
depth_train = dict(
    type='PointToMultiViewDepth',
    grid_config=depth_config,
    downsample=feature_stride,
    with_segs=True,
    seg_downsample=feature_stride // 2,
)
depth_test = dict(type='PointToMultiViewDepth', grid_config=depth_config, downsample=feature_stride)
pack = dict(type='PackOccInputs')
pack_without_points = dict(type='PackOccInputs', exclude_keys=('points',))
read_points = [_base_.load_points, fuse_points, _base_.to_ego, _base_.range_filter]
read_labelled_points = [
    _base_.load_points,
    _base_.load_lidarseg,
    fuse_points,
    _base_.to_ego,
    _base_.range_filter,
]

# cameras and LiDAR
train_pipeline = [read_frames_train, _base_.load_labels, *read_labelled_points, flip_train, depth_train, pack]
test_pipeline = [read_frames_test, _base_.load_labels, *read_points, flip_test, depth_test, pack]

# For camera-only models: the key frame's points make the depth and class labels of training and are no input.
camera_train_pipeline = [
    read_images_train,
    _base_.load_labels,
    _base_.load_points,
    _base_.load_lidarseg,
    _base_.to_ego,
    flip_train,
    depth_train,
    pack_without_points,
]
camera_test_pipeline = [read_images_test, _base_.load_labels, flip_test, pack]

# For the image branch alone
image_train_pipeline = [
    read_images_train,
    _base_.load_points,
    _base_.load_lidarseg,
    _base_.to_ego,
    flip_train,
    depth_train,
    pack_without_points,
]

# For LiDAR-only models
lidar_train_pipeline = [_base_.load_labels, *read_points, flip_train, pack]
lidar_test_pipeline = [_base_.load_labels, *read_points, flip_test, pack]

train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=train_pipeline, num_adjacent=lidar_frames),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline, num_adjacent=lidar_frames),
)
test_dataloader = val_dataloader

val_evaluator = dict(eval_mask=eval_mask)
