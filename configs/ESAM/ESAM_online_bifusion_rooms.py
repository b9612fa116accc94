# Route 3, small: trains on synthetic rooms on a CPU. Image features: tools/precompute_clip_feats.py, or computed.
_base_ = ['./ESAM_online_3dtsa_rooms.py']

model = dict(
    type='BiFusionSegOnline',
    backbone=None,
    neck=None,
    bi_encoder=dict(
        _base_.bi_encoder,
        backbone3d=_base_.model.backbone,
        neck3d=_base_.model.neck,
        conv_reduce=dict(_base_.bi_encoder.conv_reduce, out_channels=64),
        out_channels=_base_.channels,
        voxel_size=_base_.voxel_size,
    ),
)
custom_hooks = [_base_.fusion_statistics]
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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
linked_fields_fusion = [
    dict(name='clip_weights', value=_base_.clip_weights, to='model.bi_encoder.backbone2d.pretrained')
]
