# nuScenes key frames with Occ3D labels, six cameras and the LiDAR, at the size of the published FusionOcc.
# Files: tools/create_data.py nuscenes; labels: Occ3D's gts/ folder beside samples/.
dataset_type = 'NuScenesOccDataset'
data_root = 'data/nuscenes'

# whose mIoU is called 'mIoU': 'none', 'camera' or 'lidar'. All three are always computed and named.
# The mask of the training loss is a field of its own (use_mask).
eval_mask = 'camera'

data_config = dict(
    input_size=(512, 1408),  # (H, W) of the network's images
    src_size=(900, 1600),  # (H, W) of the files
    # training draws, per camera
    resize=(-0.06, 0.11),  # added to the scale input width / file width
    rot=(-5.4, 5.4),  # degrees
    flip=True,
    crop_h=(0.0, 0.0),  # share of the rows cut off below
)
bda_aug_conf = dict(rot_lim=(0.0, 0.0), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
depth_config = dict(depth=(1.0, 45.0, 0.5))  # m: from, to, step
occ_range = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)  # m, ego frame
camera_frames = 1  # key frames before the current one whose images are used
lidar_frames = 7  # key frames before the current one whose points are used
feature_stride = 16  # depth and class images are made at the resolution of the feature maps
# None: the class images are painted while training; 'imgseg': read from that folder of the data root, which
# tools/create_img_seg.py has filled
img_seg_dir = None

# Every order of augmentation, labels and points that the transforms allow is equal; this one is FusionOcc's.
load_labels = dict(type='LoadOccGTFromFile')
load_points = dict(type='LoadLidarPoints', load_dim=5)
load_lidarseg = dict(type='LoadLidarSegLabels')  # in training: for the class images
fuse_points = dict(type='FuseAdjacentPoints', num_adjacent=lidar_frames, load_dim=5)
to_ego = dict(type='PointsLidarToEgo')
range_filter = dict(type='EgoPointsRangeFilter', point_cloud_range=occ_range)

train_pipeline = [
    dict(type='PrepareImageInputs', data_config=data_config, is_train=True, num_adjacent=camera_frames),
    load_labels,
    load_points,
    load_lidarseg,
    dict(type='LoadImageSegs', img_seg_dir=img_seg_dir, downsample=feature_stride),
    fuse_points,
    dict(type='ThinPoints', keep_above_ring=16, keep_probability=0.2, is_train=True),
    to_ego,
    range_filter,
    dict(type='BEVAug', bda_aug_conf=bda_aug_conf, is_train=True),
    dict(type='PointToMultiViewDepth', grid_config=depth_config, downsample=feature_stride),
    dict(type='PackOccInputs'),
]
test_pipeline = [
    dict(type='PrepareImageInputs', data_config=data_config, num_adjacent=camera_frames),
    load_labels,
    load_points,
    fuse_points,
    dict(type='ThinPoints', keep_above_ring=16, keep_probability=0.2),  # the same points at every test
    to_ego,
    range_filter,
    dict(type='BEVAug', bda_aug_conf=bda_aug_conf),
    dict(type='PointToMultiViewDepth', grid_config=depth_config, downsample=feature_stride),
    dict(type='PackOccInputs'),
]

train_dataloader = dict(
    batch_size=1,  # per process
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        pipeline=train_pipeline,
        num_adjacent=max(camera_frames, lidar_frames),
        modality=dict(use_camera=True, use_lidar=True),
        tolerance='strict',  # 'tolerant': skip and count bad samples, fail above max_bad_fraction
        max_bad_fraction=0.01,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_val.pkl',
        pipeline=test_pipeline,
        num_adjacent=max(camera_frames, lidar_frames),
        modality=dict(use_camera=True, use_lidar=True),
        tolerance='strict',
        max_bad_fraction=0.01,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

# Validation during training: mIoU and geometric IoU under all masks. The test: RayIoU as well.
# A config that wants it at each validation says `val_evaluator = _base_.test_evaluator`.
val_evaluator = dict(type='OccupancyMetric', eval_mask=eval_mask)
test_evaluator = [dict(type='OccupancyMetric', eval_mask=eval_mask), dict(type='RayIoU')]

# a change of the name reaches the places that the file's variable went to
linked_fields_data = [
    dict(name='eval_mask', value=eval_mask, to=['val_evaluator.eval_mask', 'test_evaluator.0.eval_mask']),
    dict(
        name='data_root',
        value=data_root,
        to=[
            'train_dataloader.dataset.data_root',
            'val_dataloader.dataset.data_root',
            'test_dataloader.dataset.data_root',
        ],
    ),
    dict(name='img_seg_dir', value=img_seg_dir, to='train_dataloader.dataset.pipeline.4.img_seg_dir'),
]
