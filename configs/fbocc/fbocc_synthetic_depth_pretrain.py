# Joint depth and semantic pretraining of the small FB-OCC's image branch, as r50_256x705_depth_pretrain.py is for the
# published model. fbocc_synthetic.py and its single-frame twin take the checkpoint as load_from.
_base_ = ['./fbocc_synthetic.py']

small = _base_.model
model = dict(
    _delete_=True,
    type='DepthSemanticPretrainer',
    data_preprocessor=small.data_preprocessor,
    img_backbone=small.img_backbone,
    img_neck=small.img_neck,
    depth_net=small.depth_net,
)
linked_fields = []

# single frames: no sequences, no labels of voxels
train_pipeline = [
    _base_.read_images_train,
    _base_.load_points,
    dict(type='LoadLidarSegLabels'),
    dict(type='PointToMultiViewDepth', grid_config=_base_.depth_config, downsample=16, with_segs=True),
    dict(type='PackOccInputs', exclude_keys=('points',)),
]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=train_pipeline, sequences_split_num=None),
)
# nothing to score: depth and classes of images have no metric here
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
linked_fields_data = [dict(name='data_root', value=_base_.data_root, to='train_dataloader.dataset.data_root')]
max_epochs = 12
optim_wrapper = dict(paramwise_cfg=None)  # everything learns at one rate
custom_hooks = []
