# Single frames of ScanNet with 200 classes: tools/create_data.py scannet200_sv
_base_ = ['./scannet200.py']
dataset_type = 'ScanNet200SegDataset_'
data_root = 'data/scannet200-sv/'
info_prefix = 'scannet200_sv_oneformer3d'
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
superpoint_labels = dict(
    type='AddSuperPointAnnotations',
    num_classes=_base_.num_classes,
    stuff_classes=_base_.stuff_classes,
    merge_non_stuff_cls=False,
)
elastic = dict(type='ElasticTransfrom', gran=[6, 20], mag=[40, 160], voxel_size=0.02, p=0.5)  # voxels; metres

train_pipeline = [
    load_points,
    load_labels,
    swap_labels,
    map_labels,
    _base_.flip,
    _base_.rotate,
    _base_.normalize,
    superpoint_labels,
    elastic,
    dict(type='Pack3DDetInputs_', keys=_base_.train_keys),
]
test_pipeline = [
    load_points,
    load_labels,
    swap_labels,
    map_labels,
    _base_.normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_', keys=_base_.test_keys),
]

frames = dict(type=dataset_type, data_root=data_root, data_prefix=data_prefix)
train_dataloader = dict(
    batch_size=16,  # per process
    dataset=dict(frames, ann_file=info_prefix + '_infos_train.pkl', pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(frames, ann_file=info_prefix + '_infos_val.pkl', pipeline=test_pipeline))
test_dataloader = val_dataloader

linked_fields_data = [dict(name='data_root', value=data_root, to=_base_.data_root_fields)]
