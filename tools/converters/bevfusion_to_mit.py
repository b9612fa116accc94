#!/usr/bin/env python3
"""Checkpoints of BEVFusion under the names of MIT's, with sparse kernels and boxes as MIT's code has them.

tools/converters/bevfusion_to_mit.py ours.pth out.pth

Order of the sizes and yaw are folded back into the last layers. MIT's code takes the height for that of the box's top:
export weights that were trained with bbox_coder.height_is_top=True, or correct the boxes after decoding by half a
height.
"""

from _frame import Converter, run
from bevfusion_mit import fold_boxes

_DECODER = r'^(heads\.object\.decoder\.\d+\.)'


def to_mit(state: dict) -> dict:
    """Of {MIT's name: tensor} in our layout."""
    prefix, ours = 'heads.object.', 'bbox_head.'
    named = {ours + name[len(prefix) :] if name.startswith(prefix) else name: v for name, v in state.items()}
    state = {
        prefix + name[len(ours) :] if name.startswith(ours) else name: value
        for name, value in fold_boxes(named).items()
    }
    return {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if getattr(value, 'ndim', 0) == 5 else value
        for name, value in state.items()
    }


CONVERTER = Converter(
    __doc__,
    key_map=[
        'img_backbone -> encoders.camera.backbone',
        'img_neck -> encoders.camera.neck',
        'view_transform -> encoders.camera.vtransform',
        'pts_middle_encoder -> encoders.lidar.backbone',
        'fusion_layer -> fuser',
        'pts_backbone -> decoder.backbone',
        'pts_neck -> decoder.neck',
        'bbox_head -> heads.object',
        'map_head -> heads.map',
        dict(regex=_DECODER + r'self_attn\.attn\.', to=r'\1self_attn.'),
        dict(regex=_DECODER + r'cross_attn\.attn\.', to=r'\1multihead_attn.'),
        dict(regex=_DECODER + r'ffn\.layers\.0\.0\.', to=r'\1linear1.'),
        dict(regex=_DECODER + r'ffn\.layers\.1\.', to=r'\1linear2.'),
        dict(regex=_DECODER + r'norms\.0\.', to=r'\1norm1.'),
        dict(regex=_DECODER + r'norms\.1\.', to=r'\1norm2.'),
        dict(regex=_DECODER + r'norms\.2\.', to=r'\1norm3.'),
    ],
    targets=['encoders', 'fuser', 'decoder', 'heads'],
    adapt=to_mit,
)

if __name__ == '__main__':
    run(CONVERTER)
