# Joint depth and semantic pretraining of FB-OCC's image branch. The published weights of this name came without their
# config; this is ours. The checkpoint's img_backbone, img_neck and depth_net load into FB-OCC (load_from).
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_fbocc.py',
    '../_base_/schedules/fbocc_20e.py',
    '../_base_/models/fbocc.py',
]

published = _base_.model
model = dict(
    _delete_=True,
    type='DepthSemanticPretrainer',
    data_preprocessor=published.data_preprocessor,
    img_backbone=published.img_backbone,
    img_neck=published.img_neck,
    depth_net=published.depth_net,
)
linked_fields = []

# single frames: no sequences, no turning of the scene, which the images do not see
train_pipeline = [
    dict(type='PrepareImageInputs', data_config=_base_.data_config, is_train=True),
    dict(type='LoadLidarPoints', load_dim=5),
    dict(type='LoadLidarSegLabels'),
    dict(type='PointToMultiViewDepth', grid_config=_base_.depth_config, downsample=16, with_segs=True),
    dict(type='PackOccInputs', exclude_keys=('points',)),
]
train_dataloader = dict(
    sampler=dict(shuffle=True), batch_sampler=None, dataset=dict(pipeline=train_pipeline, sequences_split_num=None)
)
# nothing to score: depth and classes of images have no metric here
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
linked_fields_data = []
max_epochs = 24
custom_hooks = [dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560)]
