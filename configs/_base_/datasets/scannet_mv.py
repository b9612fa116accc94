# Scenes of frames of ScanNet with 20 classes: tools/create_data.py scannet_mv
_base_ = ['./scannet200_mv.py']
dataset_type = 'ScanNetSegMVDataset_'
data_root = 'data/scannet-mv/'
rec_root = 'data/scannet'
info_prefix = 'scannet_mv_oneformer3d'
num_classes = 20
load_train = dict(_base_.load_train, dataset_type='scannet', rec_root=rec_root)
load_test = dict(_base_.load_test, dataset_type='scannet', rec_root=rec_root)
superpoint_labels = dict(_base_.superpoint_labels, num_classes=num_classes)

train_pipeline = [
    load_train,
    _base_.map_labels,
    _base_.flip,
    _base_.rotate,
    _base_.normalize,
    superpoint_labels,
    _base_.elastic,
    _base_.boxes,
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.train_keys, 'gt_bboxes_3d']),
]
test_pipeline = [
    load_test,
    _base_.map_labels,
    _base_.normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_Online', keys=_base_.test_keys),
]
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        ann_file=info_prefix + '_infos_train.pkl',
        pipeline=train_pipeline,
        ignore_index=num_classes,
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type, ann_file=info_prefix + '_infos_val.pkl', pipeline=test_pipeline, ignore_index=num_classes
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(eval_mode='multi_class', class_groups=None)
test_evaluator = val_evaluator
