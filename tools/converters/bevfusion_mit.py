#!/usr/bin/env python3
"""Checkpoints of MIT's BEVFusion under the module names of mmdet3d's.

tools/converters/bevfusion_mit.py bevfusion-det.pth out.pth [--config CONFIG]

Sparse kernels stay as they are: loading permutes them. Boxes keep MIT's conventions (order of the sizes, yaw, height).
"""

from _frame import Converter, run

_DECODER = r'^(bbox_head\.decoder\.\d+\.)'
CONVERTER = Converter(
    __doc__,
    key_map=[
        'encoders.camera.backbone -> img_backbone',
        'encoders.camera.neck -> img_neck',
        'encoders.camera.vtransform -> view_transform',
        'encoders.lidar.backbone -> pts_middle_encoder',
        'fuser -> fusion_layer',
        'decoder.backbone -> pts_backbone',
        'decoder.neck -> pts_neck',
        'heads.object -> bbox_head',
        'heads.map -> map_head',
        dict(regex=_DECODER + r'self_attn\.', to=r'\1self_attn.attn.'),
        dict(regex=_DECODER + r'multihead_attn\.', to=r'\1cross_attn.attn.'),
        dict(regex=_DECODER + r'linear1\.', to=r'\1ffn.layers.0.0.'),
        dict(regex=_DECODER + r'linear2\.', to=r'\1ffn.layers.1.'),
        dict(regex=_DECODER + r'norm1\.', to=r'\1norms.0.'),
        dict(regex=_DECODER + r'norm2\.', to=r'\1norms.1.'),
        dict(regex=_DECODER + r'norm3\.', to=r'\1norms.2.'),
    ],
    targets=[
        *('img_backbone', 'img_neck', 'view_transform', 'pts_middle_encoder'),
        *('fusion_layer', 'pts_backbone', 'pts_neck', 'bbox_head', 'map_head'),
    ],
)

if __name__ == '__main__':
    run(CONVERTER)
