# The small BEVFusion from LiDAR alone, both tasks: the quickest to train.
_base_ = ['./bevfusion_synthetic.py']

model = dict(
    img_backbone=None,
    img_neck=None,
    view_transform=None,
    fusion_layer=None,
    pts_backbone=dict(in_channels=32),
)
turn = dict(
    type='BEVFusionGlobalRotScaleTrans', scale_ratio_range=[0.95, 1.05], rot_range=[-0.4, 0.4], translation_std=0.2
)
train_pipeline = [
    _base_.load_points,
    _base_.load_boxes,
    turn,
    _base_.load_map,
    _base_.flip,
    *_base_.filters,
    _base_.shuffle,
    _base_.pack,
]
test_pipeline = [_base_.load_points, _base_.load_map, _base_.filters[0], _base_.pack]
modality = dict(use_camera=False, use_lidar=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, modality=modality))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader

# where the steps of these pipelines stand
_train, _tests = 'train_dataloader.dataset', ['val_dataloader.dataset', 'test_dataloader.dataset']
_steps = dict(
    reduce_beams=[f'{d}.pipeline.0.reduce_beams' for d in [_train, *_tests]],
    object_classes=[
        *[f'{d}.classes' for d in [_train, *_tests]], 'model.bbox_head.class_names', f'{_train}.pipeline.7.classes',
    ],
    map_classes=[
        *[f'{d}.map_classes' for d in [_train, *_tests]], 'model.map_head.classes', f'{_train}.pipeline.3.classes',
        *[f'{d}.pipeline.1.classes' for d in _tests],
    ],
    point_cloud_range=[
        'model.data_preprocessor.voxelize_cfg.point_cloud_range',
        *[f'{_train}.pipeline.{n}.point_cloud_range' for n in (5, 6)],
        *[f'{d}.pipeline.2.point_cloud_range' for d in _tests],
    ],
)  # fmt: skip
linked_fields_bevfusion = [
    dict(name=entry['name'], value=entry['value'], to=_steps.get(entry['name'], entry['to']))
    for entry in _base_.linked_fields_bevfusion
]
