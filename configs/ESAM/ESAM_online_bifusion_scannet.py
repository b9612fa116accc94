# Route 3, online: Bi-Fusion with all of the past. Two processes of 4 scenes; out of memory: num_frames = 6.
_base_ = ['./ESAM_online_3dtsa_scannet.py']

pretrained_3d = 'work_dirs/3dtsa_mv/epoch_128.pth'
load_from = None  # the hook below brings the 3D branch; --load-from work_dirs/bif_sv/epoch_160.pth: all of Bi-Fusion
max_epochs = 160
lr = 5e-4
warmup = 2000  # iterations

model = dict(
    type='BiFusionSegOnline',
    backbone=None,
    neck=None,
    bi_encoder=dict(_base_.bi_encoder, backbone3d=_base_.model.backbone, neck3d=_base_.model.neck),
    memory=dict(queue=-1),
)
custom_hooks = [
    dict(_base_.load_3d, path=pretrained_3d, take=[*_base_.parts_3d, 'memory', 'merge_head']),
    _base_.fusion_statistics,
]

load_train = dict(_base_.load_train, keep_images=True)
load_test = dict(_base_.load_test, keep_images=True)
load_clip = dict(_base_.load_clip, data_root=_base_.data_root)
train_pipeline = [
    load_train,
    load_clip,
    _base_.project,
    *_base_.train_pipeline[1:-1],
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.train_keys, *_base_.clip_keys]),
]
test_pipeline = [
    load_test,
    load_clip,
    _base_.project,
    *_base_.test_pipeline[1:-1],
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.test_keys, *_base_.clip_keys]),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

linked_fields_fusion = [
    dict(name='clip_weights', value=_base_.clip_weights, to='model.bi_encoder.backbone2d.pretrained'),
    dict(name='pretrained_3d', value=pretrained_3d, to='custom_hooks.0.path'),
]
