#!/usr/bin/env python3
"""Checkpoints of MIT's BEVFusion under the module names of mmdet3d's.

tools/converters/bevfusion_mit.py bevfusion-det.pth out.pth [--config CONFIG]

Loading understands MIT's names by itself; this rewrites such a file for good. Sparse kernels get spconv 2's layout,
and the boxes of the detection head in mmdet3d's convention: length, width, height and its yaw, folded into the last
layers. MIT's height is that of a box's top, which cannot be folded: set bbox_coder.height_is_top=True in the config, or
let fine-tuning adapt it. bevfusion_mit_boxes.py folds the boxes of files that already have mmdet3d's names;
bevfusion_to_mit.py goes the other way.
"""

import re

from _frame import Converter, run

_DECODER = r'^(bbox_head\.decoder\.\d+\.)'
KEY_MAP = [
    'encoders.camera.backbone -> img_backbone',
    'encoders.camera.neck -> img_neck',
    'encoders.camera.vtransform -> view_transform',
    'encoders.lidar.backbone -> pts_middle_encoder',
    'fuser -> fusion_layer',
    'decoder.backbone -> pts_backbone',
    'decoder.neck -> pts_neck',
    'heads.object -> bbox_head',
    'heads.map -> map_head',
    dict(regex=_DECODER + r'self_attn\.(?!attn\.)', to=r'\1self_attn.attn.'),
    dict(regex=_DECODER + r'multihead_attn\.', to=r'\1cross_attn.attn.'),
    dict(regex=_DECODER + r'linear1\.', to=r'\1ffn.layers.0.0.'),
    dict(regex=_DECODER + r'linear2\.', to=r'\1ffn.layers.1.'),
    dict(regex=_DECODER + r'norm1\.', to=r'\1norms.0.'),
    dict(regex=_DECODER + r'norm2\.', to=r'\1norms.1.'),
    dict(regex=_DECODER + r'norm3\.', to=r'\1norms.2.'),
]
TARGETS = [
    *('img_backbone', 'img_neck', 'view_transform', 'pts_middle_encoder'),
    *('fusion_layer', 'pts_backbone', 'pts_neck', 'bbox_head', 'map_head'),
]
_LAST_LAYER = re.compile(r'^bbox_head\.prediction_heads\.\d+\.(dim|rot)\.1\.(weight|bias)$')


def fold_boxes(state: dict) -> dict:
    """MIT's boxes (width, length, height; yaw turned) to mmdet3d's; its own inverse."""
    folded = dict(state)
    for name, value in state.items():
        kind = _LAST_LAYER.match(name)
        if kind is None:
            continue
        if kind[1] == 'dim':
            folded[name] = value[[1, 0, 2]]
        else:  # (sin, cos) of -yaw - pi / 2
            folded[name] = -value[[1, 0]]
    return folded


def out_first(state: dict) -> dict:
    """Sparse kernels (kx, ky, kz, in, out) as (out, kx, ky, kz, in)."""
    return {
        name: value.permute(4, 0, 1, 2, 3).contiguous()
        if getattr(value, 'ndim', 0) == 5 and _stored_last(value.shape)
        else value
        for name, value in state.items()
    }


def _stored_last(shape) -> bool:
    """By shape: kernels have sides of 1 or 3, and no layer of this encoder has so few channels."""
    return max(shape[:3]) <= 3 < min(shape[3:])


CONVERTER = Converter(
    __doc__, key_map=KEY_MAP, targets=TARGETS, adapt=lambda state: fold_boxes(out_first(state))
)  # fmt: skip

if __name__ == '__main__':
    run(CONVERTER)
