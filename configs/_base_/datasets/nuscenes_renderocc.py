# nuScenes key frames for UniOcc and RenderOcc: six cameras, three key frames of images (the last for stereo depth
# alone), rays with 2D labels from seven key frames. The LiDAR makes labels and is no input.
# Files: tools/create_data_bevdet.py; nuScenes-lidarseg. 3D labels (Occ3D's gts/) only where a config trains with them.
_base_ = ['./nuscenes_occ.py']

camera_frames = 2  # key frames before the current one whose images are read
aux_frames = [-3, -2, -1, 1, 2, 3]  # key frames, beside this one, whose rays supervise it
max_rays = 38400  # of a sample
key_ego = 'first_camera'  # whose moment the ego frame of voxels and rays is, as of the model

load_images_train = dict(
    type='PrepareImageInputs', data_config=_base_.data_config, is_train=True, num_adjacent=camera_frames
)
load_images_test = dict(type='PrepareImageInputs', data_config=_base_.data_config, num_adjacent=camera_frames)
flip_train = dict(type='BEVAug', bda_aug_conf=_base_.bda_aug_conf, is_train=True)
flip_test = dict(type='BEVAug', bda_aug_conf=_base_.bda_aug_conf)
make_depth = dict(type='PointToMultiViewDepth', grid_config=_base_.depth_config, downsample=16)
# Made while loading. From files of tools/create_ray_labels.py: depth='files', semantics='files',
# depth_dir='depth_gt', semantic_dir='seg_gt_lidarseg'. From a segmentation network's maps: semantics='maps',
# semantic_dir=..., class_map=... (see docs/uniocc.md).
make_rays = dict(
    type='GenerateRays',
    depth='lidar',
    semantics='lidar',
    max_rays=max_rays,
    key_ego=key_ego,
    weight_adj=0.3,
    weight_dyn=0.0,
)
pack_train = dict(type='PackOccInputs', exclude_keys=('points',))

# 2D labels alone
rays_pipeline = [load_images_train, flip_train, _base_.load_points, make_depth, make_rays, pack_train]
# 3D labels alone, and both
labels_pipeline = [load_images_train, flip_train, _base_.load_points, _base_.load_labels, make_depth, pack_train]
both_pipeline = [
    load_images_train,
    flip_train,
    _base_.load_points,
    _base_.load_labels,
    make_depth,
    make_rays,
    pack_train,
]
test_pipeline = [load_images_test, _base_.load_labels, flip_test, dict(type='PackOccInputs')]

train_dataloader = dict(
    batch_size=2,  # per process
    dataset=dict(
        ann_file='bevdetv2-nuscenes_infos_train.pkl',
        pipeline=rays_pipeline,
        num_adjacent=camera_frames,
        aux_frames=aux_frames,
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file='bevdetv2-nuscenes_infos_val.pkl',
        pipeline=test_pipeline,
        num_adjacent=camera_frames,
        modality=dict(use_camera=True, use_lidar=False),
    ),
)
test_dataloader = val_dataloader

linked_fields_data = [
    dict(name='eval_mask', value=_base_.eval_mask, to=['val_evaluator.eval_mask', 'test_evaluator.0.eval_mask']),
    dict(
        name='data_root',
        value=_base_.data_root,
        to=[
            'train_dataloader.dataset.data_root',
            'val_dataloader.dataset.data_root',
            'test_dataloader.dataset.data_root',
        ],
    ),
    dict(name='aux_frames', value=aux_frames, to='train_dataloader.dataset.aux_frames'),
]
