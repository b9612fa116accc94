# nuScenes key frames for BEVFusion: six cameras at 256 x 704, ten sweeps, boxes and map masks in the LiDAR frame.
# Files: tools/create_data.py nuscenes (boxes, sweeps), nuScenes' map expansion v1.3 in maps/.
# Source: Z. Liu et al., "BEVFusion", ICRA 2023.
dataset_type = 'BEVNuScenesDataset'
data_root = 'data/nuscenes/'
class_names = [
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian',
    'traffic_cone',
]  # fmt: skip
map_classes = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]  # m
image_size = [256, 704]  # (H, W)
num_cameras = None  # as many as the info file has
reduce_beams = 32  # 16, 4 or 1 of the 32 beams; 32 and more: all
sweeps_num = 9
map_xbound = [-50.0, 50.0, 0.5]  # m
map_ybound = [-50.0, 50.0, 0.5]  # m

load_images = dict(type='BEVLoadMultiViewImageFromFiles')
load_points = dict(type='BEVLoadPoints', sweeps_num=sweeps_num, reduce_beams=reduce_beams)
load_boxes = dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True)
load_map = dict(type='LoadBEVSegmentation', xbound=map_xbound, ybound=map_ybound, classes=map_classes)
images_train = dict(
    type='ImageAug3D',
    final_dim=image_size,
    resize_lim=[0.38, 0.55],  # of files of 1600 x 900
    bot_pct_lim=[0.0, 0.0],
    rot_lim=[-5.4, 5.4],  # degrees
    rand_flip=True,
    is_train=True,
)
images_test = dict(type='ImageAug3D', final_dim=image_size, resize_lim=[0.48, 0.48])
turn = dict(
    type='BEVFusionGlobalRotScaleTrans',
    scale_ratio_range=[0.9, 1.1],
    rot_range=[-0.78539816, 0.78539816],
    translation_std=0.5,
)
flip = dict(type='BEVFusionRandomFlip3D')
filters = [
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
]
grid_mask = dict(type='GridMask', max_epoch=6, rotate=1, ratio=0.5, mode=1, prob=0.0)
shuffle = dict(type='PointShuffle')
pack = dict(type='PackBEVInputs')

train_pipeline = [
    load_images, load_points, load_boxes, images_train, turn, load_map, flip, *filters, grid_mask, shuffle, pack,
]  # fmt: skip
test_pipeline = [load_images, load_points, images_test, load_map, filters[0], pack]

dataset = dict(
    type=dataset_type,
    data_root=data_root,
    classes=class_names,
    map_classes=map_classes,
    num_cameras=num_cameras,
    modality=dict(use_camera=True, use_lidar=True),
    box_type_3d='LiDAR',
    use_valid_flag=True,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='OccCBGSDataset', dataset=dict(ann_file='nuscenes_infos_train.pkl', pipeline=train_pipeline, **dataset)
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='nuscenes_infos_val.pkl', pipeline=test_pipeline, test_mode=True, **dataset),
)
test_dataloader = val_dataloader
box_metric = dict(type='BEVNuScenesMetric', data_root=data_root, ann_file='nuscenes_infos_val.pkl')
map_metric = dict(type='BEVMapMetric')
val_evaluator = [box_metric]
test_evaluator = val_evaluator
