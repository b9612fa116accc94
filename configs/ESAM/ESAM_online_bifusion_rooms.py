# Route 3, small: trains on synthetic rooms on a CPU. Image features: tools/precompute_clip_feats.py, or computed.
_base_ = ['./ESAM_online_3dtsa_rooms.py']

clip_weights = None  # CLIP ViT-B/16; None: random patches, whose colours and edges tell textures apart as well
model = dict(
    type='BiFusionSegOnline',
    backbone=None,
    neck=None,
    bi_encoder=dict(
        type='BiFusionEncoder',
        backbone3d=_base_.model.backbone,
        neck3d=_base_.model.neck,
        backbone2d=dict(type='ClipConv1', pretrained=clip_weights, freeze_blocks=0),
        conv_reduce=dict(type='ConvModule', in_channels=192, out_channels=64, kernel_size=1),
        out_channels=_base_.channels,
        voxel_size=_base_.voxel_size,
    ),
)
custom_hooks = [dict(type='FusionStatisticsHook')]
load_train = dict(_base_.load_train, keep_images=True)
load_test = dict(_base_.load_test, keep_images=True)
load_clip = dict(type='LoadClipFeature', data_root=_base_.data_root)
project = dict(type='ProjectPointsToImage', dataset_type='scannet200')
clip_keys = ['clip_pix', 'clip_global', 'clip_uv']
train_pipeline = [
    load_train,
    load_clip,
    project,
    *_base_.train_pipeline[1:-1],
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.train_keys, *clip_keys]),
]
test_pipeline = [
    load_test,
    load_clip,
    project,
    *_base_.test_pipeline[1:-1],
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.test_keys, *clip_keys]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
linked_fields_fusion = [dict(name='clip_weights', value=clip_weights, to='model.bi_encoder.backbone2d.pretrained')]
