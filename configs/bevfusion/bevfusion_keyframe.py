# The small BEVFusion overfitted to single sample frames, detection alone: shows that real sensor data go through
# everything, says nothing about other frames. Minutes on one CPU core; --resume goes on with a stopped training.
#   tools/create_data.py keyframe --source FOLDER --out-dir data/nuscenes_keyframe --no-labels
#   tools/train.py configs/bevfusion/bevfusion_keyframe.py --resume
_base_ = ['./bevfusion_synthetic.py']

data_root = 'data/nuscenes_keyframe/'
max_epochs = 120  # a step each
lr = 2e-3
# cells of 0.8 m: barriers stand 2 m apart, and of neighbouring cells only one is a peak
voxel_size = [0.1, 0.1, 0.2]

model = dict(map_head=None, bbox_head=dict(train_cfg=dict(min_radius=2)))
filters = _base_.filters
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        # the same every time: no augmentation
        pipeline=[
            _base_.load_images, _base_.load_points, _base_.load_boxes, _base_.images_test, *filters, _base_.pack,
        ],
    ),
)  # fmt: skip
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(pipeline=[_base_.load_images, _base_.load_points, _base_.images_test, filters[0], _base_.pack]),
)
test_dataloader = val_dataloader
# Without nuScenes' tables: the boxes of the info file. A frame has few of the ten classes within their ranges, the
# others count 0 in mAP: present/mAP is the mean over those that it has.
val_evaluator = [dict(type='BEVBoxMetric', data_root=data_root, ann_file=_base_.val_ann_file)]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=20, max_keep_ckpts=1), logger=dict(interval=10))
# the map's fields have nothing to hang on
linked_fields_bevfusion = [
    entry for entry in _base_.linked_fields_bevfusion if entry['name'] in ('dataset_type', 'data_root', 'voxel_size')
]
