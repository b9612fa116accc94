# FusionOcc, small, on the frames of a sample folder (tools/create_data.py keyframe): shows that the whole path works on
# real sensor data. It learns these frames by heart and is tested on them; it says nothing about other frames.
_base_ = './fusion_occ_synthetic.py'

data_root = 'data/nuscenes_keyframe/'
image_epochs = 0
max_epochs = 8
lr = 6e-3
optim_wrapper = dict(optimizer=dict(type='AdamW'))  # with which the score in the README was measured

# Classes of a few dozen voxels: the weights of the pixels for the voxels, too, and all of the network at 0.4 m.
fine_grid = dict(x=[-40.0, 40.0, 0.4], y=[-40.0, 40.0, 0.4], z=[-1.0, 5.4, 0.4], depth=_base_.depth_range)
model = dict(
    point_painting=False,
    coarse_camera=False,
    final_kernel=3,
    img_view_transformer=dict(grid_config=fine_grid, feature_channels=16),
    occ_encoder_backbone=dict(num_layer=[1, 2, 2], num_channels=[32, 64, 96], entry_kernel=3),
    occ_encoder_neck=dict(in_channels=32 + 64 + 96),
    loss_occ=dict(class_weight=[*_base_.image_class_weight[:17], 0.2], lovasz_samples=16000),
)

# No augmentation, no earlier clouds, and no classes of the pixels: such folders have no lidarseg.
pipeline = [
    _base_.read_images_test,
    _base_.load_labels,
    _base_.load_points,
    dict(_base_.fuse_points, num_adjacent=0, sweeps=()),
    _base_.to_ego,
    _base_.range_filter,
    _base_.flip_test,
    _base_.depth_test,
    _base_.pack,
]
frames = dict(
    type=_base_.dataset_type,
    data_root=data_root,
    ann_file='nuscenes_infos_train.pkl',
    num_adjacent=0,
    pipeline=pipeline,
)
train_dataloader = dict(batch_size=2, dataset=dict(_delete_=True, type='RepeatDataset', times=56, dataset=frames))
val_dataloader = dict(
    dataset=dict(data_root=data_root, ann_file='nuscenes_infos_val.pkl', num_adjacent=0, pipeline=pipeline)
)
test_dataloader = val_dataloader

linked_fields_data = [
    dict(
        name='data_root',
        value=data_root,
        to=[
            'train_dataloader.dataset.dataset.data_root',
            'val_dataloader.dataset.data_root',
            'test_dataloader.dataset.data_root',
        ],
    ),
]
