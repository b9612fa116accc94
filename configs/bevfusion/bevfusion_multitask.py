# Detection and map segmentation in one model, from cameras and LiDAR. The authors have not released a joint recipe; both
# tasks lose a little in a shared decoder (decoders=dict(object=..., map=...) gives each its own).
# The variables below are fields: children and the command line change them, and what hangs on them follows.
_base_ = ['./bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py']

dataset_type = 'BEVNuScenesDataset'
box_metric = 'BEVNuScenesMetric'  # 'BEVBoxMetric' for data without nuScenes' tables
data_root = _base_.data_root
train_ann_file = 'nuscenes_infos_train.pkl'
val_ann_file = 'nuscenes_infos_val.pkl'
object_classes = _base_.class_names
map_classes = _base_.map_classes
num_cameras = None
camera_names = None
reduce_beams = 32
num_samples = None  # training key frames that are used, below 1 the share of them; None: all
point_cloud_range = _base_.point_cloud_range
voxel_size = _base_.voxel_size

model = dict(
    data_preprocessor=dict(voxelize_cfg=dict(point_cloud_range=point_cloud_range, voxel_size=voxel_size)),
    bbox_head=dict(class_names=object_classes),
    map_head=dict(
        type='BEVSegmentationHead',
        in_channels=512,
        grid_transform=dict(output_scope=[_base_.map_xbound, _base_.map_ybound]),
        classes=map_classes,
        loss='focal',
    ),
    loss_scale=dict(object=1.0, map=1.0),
)
dataset = dict(
    type=dataset_type,
    data_root=data_root,
    classes=object_classes,
    map_classes=map_classes,
    num_cameras=num_cameras,
    camera_names=camera_names,
    modality=dict(use_camera=True, use_lidar=True),
    box_type_3d='LiDAR',
    use_valid_flag=True,
)
train_pipeline = [
    _base_.load_images,
    _base_.load_points,
    _base_.load_boxes,
    _base_.images_train,
    _base_.turn,
    _base_.load_map,
    _base_.flip,
    *_base_.filters,
    _base_.shuffle,
    _base_.pack,
]
test_pipeline = [
    _base_.load_images, _base_.load_points, _base_.images_test, _base_.load_map, _base_.filters[0], _base_.pack,
]  # fmt: skip
train_dataloader = dict(
    dataset=dict(
        _delete_=True, ann_file=train_ann_file, pipeline=train_pipeline, num_samples=num_samples,
        filter_empty_gt=False, **dataset,
    )
)  # fmt: skip
val_dataloader = dict(
    dataset=dict(_delete_=True, ann_file=val_ann_file, pipeline=test_pipeline, test_mode=True, **dataset)
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type=box_metric, data_root=data_root, ann_file=val_ann_file),
    dict(type='BEVMapMetric'),
]
test_evaluator = val_evaluator

_data = ['train_dataloader.dataset', 'val_dataloader.dataset', 'test_dataloader.dataset']
linked_fields_bevfusion = [
    dict(name='dataset_type', value=dataset_type, to=[f'{d}.type' for d in _data]),
    dict(name='box_metric', value=box_metric, to=['val_evaluator.0.type', 'test_evaluator.0.type']),
    dict(
        name='data_root',
        value=data_root,
        to=[*[f'{d}.data_root' for d in _data], 'val_evaluator.0.data_root', 'test_evaluator.0.data_root'],
    ),
    dict(name='train_ann_file', value=train_ann_file, to='train_dataloader.dataset.ann_file'),
    dict(
        name='val_ann_file',
        value=val_ann_file,
        to=[*[f'{d}.ann_file' for d in _data[1:]], 'val_evaluator.0.ann_file', 'test_evaluator.0.ann_file'],
    ),
    dict(
        name='object_classes',
        value=object_classes,
        to=[*[f'{d}.classes' for d in _data], 'model.bbox_head.class_names', 'train_dataloader.dataset.pipeline.9.classes'],
    ),
    dict(
        name='map_classes',
        value=map_classes,
        to=[
            *[f'{d}.map_classes' for d in _data], 'model.map_head.classes',
            'train_dataloader.dataset.pipeline.5.classes', 'val_dataloader.dataset.pipeline.3.classes',
            'test_dataloader.dataset.pipeline.3.classes',
        ],
    ),
    dict(name='num_cameras', value=num_cameras, to=[f'{d}.num_cameras' for d in _data]),
    dict(name='camera_names', value=camera_names, to=[f'{d}.camera_names' for d in _data]),
    dict(name='num_samples', value=num_samples, to='train_dataloader.dataset.num_samples'),
    dict(name='reduce_beams', value=reduce_beams, to=[f'{d}.pipeline.1.reduce_beams' for d in _data]),
    dict(name='voxel_size', value=voxel_size, to='model.data_preprocessor.voxelize_cfg.voxel_size'),
    dict(
        name='point_cloud_range',
        value=point_cloud_range,
        to=[
            'model.data_preprocessor.voxelize_cfg.point_cloud_range',
            'train_dataloader.dataset.pipeline.7.point_cloud_range',
            'train_dataloader.dataset.pipeline.8.point_cloud_range',
            'val_dataloader.dataset.pipeline.4.point_cloud_range',
            'test_dataloader.dataset.pipeline.4.point_cloud_range',
        ],
    ),
]  # fmt: skip
