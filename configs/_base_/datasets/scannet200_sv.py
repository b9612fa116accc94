# Single frames of ScanNet with 200 classes: tools/create_data.py scannet200_sv
dataset_type = 'ScanNet200SegDataset_'
data_root = 'data/scannet200-sv/'
info_prefix = 'scannet200_sv_oneformer3d'
num_classes = 200
stuff_classes = [0, 1]  # wall, floor
data_prefix = dict(
    pts='points', pts_instance_mask='instance_mask', pts_semantic_mask='semantic_mask', sp_pts_mask='super_points'
)

load_points = dict(
    type='LoadPointsFromFile_',
    coord_type='DEPTH',
    shift_height=False,
    use_color=True,
    load_dim=6,
    use_dim=[0, 1, 2, 3, 4, 5],
)
load_labels = dict(
    type='LoadAnnotations3D_',
    with_bbox_3d=False,
    with_label_3d=False,
    with_mask_3d=True,
    with_seg_3d=True,
    with_sp_mask_3d=True,
)
swap_labels = dict(type='SwapChairAndFloor')
map_labels = dict(type='PointSegClassMapping')
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
    type='AddSuperPointAnnotations', num_classes=num_classes, stuff_classes=stuff_classes, merge_non_stuff_cls=False
)
elastic = dict(type='ElasticTransfrom', gran=[6, 20], mag=[40, 160], voxel_size=0.02, p=0.5)  # voxels; metres
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
    load_points,
    load_labels,
    swap_labels,
    map_labels,
    flip,
    rotate,
    normalize,
    superpoint_labels,
    elastic,
    dict(type='Pack3DDetInputs_', keys=train_keys),
]
test_pipeline = [
    load_points,
    load_labels,
    swap_labels,
    map_labels,
    normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_', keys=test_keys),
]

train_dataloader = dict(
    batch_size=16,  # per process
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=info_prefix + '_infos_train.pkl',
        data_prefix=data_prefix,
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
        data_prefix=data_prefix,
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
]
