# What Bi-Fusion adds to the 3D routes. The configs of route 3 put these parts in.
clip_weights = None  # CLIP ViT-B/16: file of OpenAI, open_clip or transformers; None: random patches

bi_encoder = dict(  # around backbone3d and neck3d, the backbone and the neck of route 2
    type='BiFusionEncoder',
    backbone2d=dict(type='ClipConv1', pretrained=clip_weights, freeze_blocks=0),  # 0: all of it is frozen
    conv_reduce=dict(type='ConvModule', in_channels=192, out_channels=256, kernel_size=1),
    use_tiny_sa_2d=False,
    freeze_3d='none',  # 'all', or names inside of backbone3d
)
load_3d = dict(  # a checkpoint of route 2 becomes the 3D branch and what follows it
    type='PartialLoadHook',
    key_map=['backbone -> bi_encoder.backbone3d', 'neck -> bi_encoder.neck3d'],
    min_loaded=0.9,
)
parts_3d = ['bi_encoder.backbone3d', 'bi_encoder.neck3d', 'pool', 'decoder']
fusion_statistics = dict(type='FusionStatisticsHook')

load_clip = dict(type='LoadClipFeature')
project = dict(type='ProjectPointsToImage', dataset_type='scannet200')
clip_keys = ['clip_pix', 'clip_global', 'clip_uv']
