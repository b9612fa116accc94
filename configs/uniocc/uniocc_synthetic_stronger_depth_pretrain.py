# The image branch of uniocc_synthetic_stronger.py, trained as uniocc_synthetic_depth_pretrain.py trains the other one.
_base_ = './uniocc_synthetic_depth_pretrain.py'

image_channels = 64
model = dict(
    img_backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=[2, 2, 4, 2], channels=[24, 48, 96, 192]),
        out_indices=(1, 3),
        layer_scale_init_value=0.0,
    ),
    img_neck=dict(in_channels=48 + 192, out_channels=image_channels),
    depth_net=dict(in_channels=image_channels, mid_channels=image_channels, context_channels=32),
)
