# Route 1, online: pure 3D. The box branch is off, so instances are merged by distance; the published numbers have it on
# (model.use_bbox=True, model.decoder.bbox_flag=True, load_train and boxes of the base config's pipeline).
_base_ = ['../ESAM_CA/ESAM_online_scannet200_CA.py']

load_from = 'work_dirs/3d_sv/epoch_128.pth'  # the single-frame model
num_frames = 8
max_epochs = 128
lr = 6e-4
warmup = 1000  # iterations
optim_wrapper = dict(type='OccAmpOptimWrapper', loss_scale='dynamic', optimizer=dict(weight_decay=1e-2))
param_scheduler = _base_.cosine_schedule
linked_fields_cosine = [
    dict(name='max_epochs', value=max_epochs, to='param_scheduler.0.T_max'),
    dict(name='warmup', value=warmup, to='param_scheduler.1.end'),
]

load_train = dict(_base_.load_train, with_rec=False, cat_rec=False)
superpoint_labels = dict(_base_.superpoint_labels, with_rec=False)
elastic = dict(_base_.elastic, with_rec=False)
train_pipeline = [
    load_train,
    _base_.swap_labels,
    _base_.map_labels,
    _base_.flip,
    _base_.rotate,
    _base_.normalize,
    superpoint_labels,
    elastic,
    dict(type='Pack3DDetInputs_Online', keys=_base_.train_keys),
]
train_dataloader = dict(
    batch_size=4,  # scenes of num_frames frames; 8 on one GPU
    dataset=dict(type='ScanNet200SegMVDataset_', pipeline=train_pipeline),
)
linked_fields_data = [
    dict(name='data_root', value=_base_.data_root, to=_base_.data_root_fields),
    dict(name='rec_root', value=_base_.rec_root, to=_base_.rec_root_fields),
    dict(name='num_frames', value=num_frames, to='train_dataloader.dataset.pipeline.0.num_frames'),
]
model = dict(
    use_bbox=False,
    decoder=dict(bbox_flag=False),
    memory=dict(queue=-1),  # all of the past
    img_backbone=None,
    neck=None,
)
