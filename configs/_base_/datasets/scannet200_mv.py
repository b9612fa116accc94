# Scenes of frames of ScanNet with 200 classes: tools/create_data.py scannet200_mv
dataset_type = 'ScanNet200SegMVDataset_'
data_root = 'data/scannet200-mv/'
rec_root = 'data/scannet200'  # reconstructions, on which the result is evaluated
info_prefix = 'scannet200_mv_oneformer3d'
num_classes = 200
stuff_classes = [0, 1]  # wall, floor
num_frames = 8
num_sample = 20000  # points of a frame

load_frames = dict(
    type='LoadAdjacentDataFromFile',
    coord_type='DEPTH',
    shift_height=False,
    use_color=True,
    load_dim=6,
    use_dim=[0, 1, 2, 3, 4, 5],
    num_sample=num_sample,
    with_mask_3d=True,
    with_seg_3d=True,
    with_sp_mask_3d=True,
    dataset_type='scannet200',
    rec_root=rec_root,
)
load_train = dict(load_frames, num_frames=num_frames, with_rec=True, cat_rec=True)
load_test = dict(load_frames, num_frames=-1, with_rec=True, cat_rec=False)  # all frames
swap_labels = dict(type='SwapChairAndFloorWithRec')
map_labels = dict(type='PointSegClassMappingWithRec')
flip = dict(
    type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5
)  # fmt: skip
rotate = dict(
    type='GlobalRotScaleTrans',
    rot_range=[-3.14, 3.14],  # radians
    scale_ratio_range=[0.8, 1.2],
    translation_std=[0.1, 0.1, 0.1],  # metres
    shift_height=False,
)
normalize = dict(
    type='NormalizePointsColor_',
    color_mean=[121.87265261401, 109.732557961814, 95.61477873999799],
    color_std=[72.2790247614, 70.293699472075, 68.898390804783],
)
superpoint_labels = dict(
    type='AddSuperPointAnnotations_Online',
    num_classes=num_classes,
    stuff_classes=stuff_classes,
    merge_non_stuff_cls=False,
    with_rec=True,
)
elastic = dict(type='ElasticTransfrom', gran=[6, 20], mag=[40, 160], voxel_size=0.02, p=0.5, with_rec=True)  # voxels
boxes = dict(type='BboxCalculation', voxel_size=0.02)
train_keys = [
    'points',
    'gt_labels_3d',
    'pts_semantic_mask',
    'pts_instance_mask',
    'sp_pts_mask',
    'gt_sp_masks',
    'elastic_coords',
]
test_keys = ['points', 'sp_pts_mask']

train_pipeline = [
    load_train,
    swap_labels,
    map_labels,
    flip,
    rotate,
    normalize,
    superpoint_labels,
    elastic,
    boxes,
    dict(type='Pack3DDetInputs_Online', keys=[*train_keys, 'gt_bboxes_3d']),
]
test_pipeline = [
    load_test,
    swap_labels,
    map_labels,
    normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_Online', keys=test_keys),
]

train_dataloader = dict(
    batch_size=4,  # scenes, per process
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=info_prefix + '_infos_train.pkl',
        pipeline=train_pipeline,
        ignore_index=num_classes,
        test_mode=False,
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
        ann_file=info_prefix + '_infos_val.pkl',
        pipeline=test_pipeline,
        ignore_index=num_classes,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='UnifiedSegMetric', stuff_class_inds=stuff_classes, eval_mode='cat_agnostic', class_groups='scannet200'
)
test_evaluator = val_evaluator

linked_fields_data = [
    dict(
        name='data_root',
        value=data_root,
        to=[
            'train_dataloader.dataset.data_root',
            'val_dataloader.dataset.data_root',
            'test_dataloader.dataset.data_root',
        ],
    ),
    dict(
        name='rec_root',
        value=rec_root,
        to=[
            'val_dataloader.dataset.pipeline.0.rec_root',
            'test_dataloader.dataset.pipeline.0.rec_root',
            'train_dataloader.dataset.pipeline.0.rec_root',
        ],
    ),
    dict(name='num_frames', value=num_frames, to='train_dataloader.dataset.pipeline.0.num_frames'),
]
