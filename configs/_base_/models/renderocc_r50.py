# RenderOcc with a ResNet-50 on 6 x 256 x 704 pixels.
# Source: the public configs renderocc-7frame-256x704 of the fork that joined UniOcc's losses.
_base_ = ['./renderocc.py']

input_size = (256, 704)
image_channels = 256
model = dict(
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 2, 3),  # stride 4 for stereo, 16, 32
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        with_cp=True,
        style='pytorch',
    ),
    img_neck=dict(
        _delete_=True, type='CustomFPN', in_channels=[1024, 2048], out_channels=image_channels, num_outs=1, out_ids=[0]
    ),
    img_view_transformer=dict(input_size=input_size, in_channels=image_channels),
)
