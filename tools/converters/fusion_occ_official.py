#!/usr/bin/env python3
"""Our FusionOcc checkpoint -> one in the published layout, for the original code.

tools/converters/fusion_occ_official.py CKPT OUT

All names agree; the sparse kernels of the LiDAR encoder are stored there as (kx, ky, kz, in, out), here as
(out, kx, ky, kz, in). A file in the published layout is left as it is. The other direction needs no converter: both
layouts load.
"""

from _frame import Converter, run

MODULES = [
    'img_backbone',
    'img_neck',
    'img_view_transformer',
    'pre_process_net',
    'img_bev_encoder_backbone',
    'img_bev_encoder_neck',
    'lidar_encoder',
    'final_conv',
    'predicter',
]


def published_kernels(state: dict) -> dict:
    """Kernels of the LiDAR encoder with their taps first; known by the place of the three equal sides."""
    converted = {}
    for name, value in state.items():
        is_kernel = name.startswith('lidar_encoder.') and value.dim() == 5
        if is_kernel and value.shape[1] == value.shape[2] == value.shape[3] and len(set(value.shape[:3])) > 1:
            value = value.permute(1, 2, 3, 4, 0).contiguous()
        converted[name] = value
    return converted


CONVERTER = Converter(__doc__, key_map=[], targets=MODULES, adapt=published_kernels)

if __name__ == '__main__':
    run(CONVERTER)
