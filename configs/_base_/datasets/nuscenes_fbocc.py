# nuScenes key frames for FB-OCC: six cameras at 256 x 704, sequences in order, labels that turn with the scene.
# Files: tools/create_data_bevdet.py; labels: Occ3D's gts/ folder beside samples/.
_base_ = ['./nuscenes_occ.py']

data_config = dict(
    input_size=(256, 704),  # (H, W) of the network's images
    src_size=(900, 1600),
    resize=(-0.06, 0.11),
    rot=(-5.4, 5.4),
    flip=True,
    crop_h=(0.0, 0.0),
)
bda_aug_conf = dict(rot_lim=(-22.5, 22.5), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
depth_config = dict(depth=(2.0, 42.0, 0.5))  # m: from, to, step

# The cloud makes the depth labels of training and is no input.
train_pipeline = [
    dict(type='PrepareImageInputs', data_config=data_config, is_train=True),
    dict(type='BEVAug', bda_aug_conf=bda_aug_conf, is_train=True),
    dict(type='LoadLidarPoints', load_dim=5),
    dict(type='PointToMultiViewDepth', grid_config=depth_config, downsample=16),
    dict(type='LoadOccGTFromFile'),
    dict(type='PackOccInputs', exclude_keys=('points',)),
]
test_pipeline = [
    dict(type='PrepareImageInputs', data_config=data_config),
    dict(type='BEVAug', bda_aug_conf=bda_aug_conf),
    dict(type='LoadOccGTFromFile'),
    dict(type='PackOccInputs'),
]

train_dataloader = dict(
    batch_size=4,  # sequences side by side in a process
    num_workers=6,
    sampler=dict(type='DefaultSampler', shuffle=False),
    # An epoch is as long as one over the class-balanced data set would be: 4.554 passes. Nothing is resampled.
    batch_sampler=dict(type='SequenceBatchSampler', epoch_factor=4.554),
    dataset=dict(
        ann_file='bevdetv2-nuscenes_infos_train.pkl',
        pipeline=train_pipeline,
        num_adjacent=0,
        sequences_split_num=2,  # sequences a scene
        modality=dict(use_camera=True, use_lidar=True),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=6,
    batch_sampler=dict(type='SequenceTestBatchSampler'),
    dataset=dict(
        ann_file='bevdetv2-nuscenes_infos_val.pkl',
        pipeline=test_pipeline,
        num_adjacent=0,
        sequences_split_num=1,
        modality=dict(use_camera=True, use_lidar=False),
    ),
)
test_dataloader = val_dataloader
