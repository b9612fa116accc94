# Single frames of ScanNet with 20 classes: tools/create_data.py scannet_sv
_base_ = ['./scannet200_sv.py']
dataset_type = 'ScanNetSegDataset_'
data_root = 'data/scannet-sv/'
info_prefix = 'scannet_sv_oneformer3d'
num_classes = 20
superpoint_labels = dict(_base_.superpoint_labels, num_classes=num_classes)

train_pipeline = [
    _base_.load_points,
    _base_.load_labels,
    _base_.map_labels,
    _base_.flip,
    _base_.rotate,
    _base_.normalize,
    superpoint_labels,
    _base_.elastic,
    dict(type='Pack3DDetInputs_', keys=_base_.train_keys),
]
test_pipeline = [
    _base_.load_points,
    _base_.load_labels,
    _base_.map_labels,
    _base_.normalize,
    superpoint_labels,
    dict(type='Pack3DDetInputs_', keys=_base_.test_keys),
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
