# Route 3, single frames: Bi-Fusion, CLIP's first layer beside the U-Net. Two processes of 8 frames.
# Features: tools/precompute_clip_feats.py; without them the images are read and the layer is computed.
_base_ = ['./ESAM_sv_3dtsa_scannet.py']

clip_weights = None  # CLIP ViT-B/16: file of OpenAI, open_clip or transformers; None: random
pretrained_3d = 'work_dirs/3dtsa_mv/epoch_128.pth'
max_epochs = 160
lr = 5e-4
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=2000),  # iterations
]

model = dict(
    type='BiFusionSeg',
    backbone=None,
    neck=None,
    bi_encoder=dict(
        type='BiFusionEncoder',
        backbone3d=_base_.model.backbone,
        neck3d=_base_.model.neck,
        backbone2d=dict(type='ClipConv1', pretrained=clip_weights, freeze_blocks=0),  # 0: all of it is frozen
        conv_reduce=dict(type='ConvModule', in_channels=192, out_channels=256, kernel_size=1),
        use_tiny_sa_2d=False,
        freeze_3d='none',  # 'all', or names inside of backbone3d
    ),
)
custom_hooks = [
    dict(
        type='PartialLoadHook',
        path=pretrained_3d,
        key_map=['backbone -> bi_encoder.backbone3d', 'neck -> bi_encoder.neck3d'],
        take=['bi_encoder.backbone3d', 'bi_encoder.neck3d', 'pool', 'decoder'],
        min_loaded=0.9,
    ),
    dict(type='FusionStatisticsHook'),
]

load_clip = dict(type='LoadClipFeature', data_root=_base_.data_root)
project = dict(type='ProjectPointsToImage', dataset_type='scannet200')
clip_keys = ['clip_pix', 'clip_global', 'clip_uv']
train_pipeline = [
    _base_.load_points,
    load_clip,
    project,
    *_base_.train_pipeline[1:-1],
    dict(type='Pack3DDetInputs_', keys=[*_base_.train_keys, *clip_keys]),
]
test_pipeline = [
    _base_.load_points,
    load_clip,
    project,
    *_base_.test_pipeline[1:-1],
    dict(type='Pack3DDetInputs_', keys=[*_base_.test_keys, *clip_keys]),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

linked_fields_fusion = [
    dict(name='clip_weights', value=clip_weights, to='model.bi_encoder.backbone2d.pretrained'),
    dict(name='pretrained_3d', value=pretrained_3d, to='custom_hooks.0.path'),
]
