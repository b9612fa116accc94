# Route 3, single frames: Bi-Fusion, CLIP's first layer beside the U-Net. Two processes of 8 frames.
# Features: tools/precompute_clip_feats.py; without them the images are read and the layer is computed.
_base_ = ['./ESAM_sv_3dtsa_scannet.py']

pretrained_3d = 'work_dirs/3dtsa_mv/epoch_128.pth'
max_epochs = 160
lr = 5e-4
warmup = 2000  # iterations

model = dict(
    type='BiFusionSeg',
    backbone=None,
    neck=None,
    bi_encoder=dict(_base_.bi_encoder, backbone3d=_base_.model.backbone, neck3d=_base_.model.neck),
)
custom_hooks = [dict(_base_.load_3d, path=pretrained_3d, take=_base_.parts_3d), _base_.fusion_statistics]

load_clip = dict(_base_.load_clip, data_root=_base_.data_root)
train_pipeline = [
    _base_.load_points,
    load_clip,
    _base_.project,
    *_base_.train_pipeline[1:-1],
    dict(type='Pack3DDetInputs_', keys=[*_base_.train_keys, *_base_.clip_keys]),
]
test_pipeline = [
    _base_.load_points,
    load_clip,
    _base_.project,
    *_base_.test_pipeline[1:-1],
    dict(type='Pack3DDetInputs_', keys=[*_base_.test_keys, *_base_.clip_keys]),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

linked_fields_fusion = [
    dict(name='clip_weights', value=_base_.clip_weights, to='model.bi_encoder.backbone2d.pretrained'),
    dict(name='pretrained_3d', value=pretrained_3d, to='custom_hooks.0.path'),
]
