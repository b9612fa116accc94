# Scenes of frames of ScanNet with 200 classes: tools/create_data.py scannet200_mv
_base_ = ['./scannet200.py']
dataset_type = 'ScanNet200SegMVDataset_'
data_root = 'data/scannet200-mv/'
rec_root = 'data/scannet200'  # reconstructions, on which the result is evaluated
info_prefix = 'scannet200_mv_oneformer3d'
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
superpoint_labels = dict(
    type='AddSuperPointAnnotations_Online',
    num_classes=_base_.num_classes,
    stuff_classes=_base_.stuff_classes,
    merge_non_stuff_cls=False,
    with_rec=True,
)
elastic = dict(type='ElasticTransfrom', gran=[6, 20], mag=[40, 160], voxel_size=0.02, p=0.5, with_rec=True)  # voxels
boxes = dict(type='BboxCalculation', voxel_size=0.02)

train_pipeline = [
    load_train,
    swap_labels,
    map_labels,
    _base_.flip,
    _base_.rotate,
    _base_.normalize,
    superpoint_labels,
    elastic,
    boxes,
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.train_keys, 'gt_bboxes_3d']),
]
test_pipeline = [
    load_test,
    swap_labels,
    map_labels,
    _base_.normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_Online', keys=_base_.test_keys),
]

scenes = dict(type=dataset_type, data_root=data_root)
train_dataloader = dict(
    batch_size=4,  # scenes, per process
    dataset=dict(scenes, ann_file=info_prefix + '_infos_train.pkl', pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(scenes, ann_file=info_prefix + '_infos_val.pkl', pipeline=test_pipeline))
test_dataloader = val_dataloader

rec_root_fields = [f'{loader}_dataloader.dataset.pipeline.0.rec_root' for loader in ('val', 'test')]
linked_fields_data = [
    dict(name='data_root', value=data_root, to=_base_.data_root_fields),
    dict(name='rec_root', value=rec_root, to=[*rec_root_fields, 'train_dataloader.dataset.pipeline.0.rec_root']),
    dict(name='num_frames', value=num_frames, to='train_dataloader.dataset.pipeline.0.num_frames'),
]
