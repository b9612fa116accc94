#!/usr/bin/env python3
"""Boxes of MIT's BEVFusion in a checkpoint with mmdet3d's names (its first conversion, bevfusion_converted.pth) to
mmdet3d's convention.

tools/converters/bevfusion_mit_boxes.py bevfusion_converted.pth out.pth [--config CONFIG]

Order of the sizes and yaw are folded into the last layers. The height stays that of the box's top: set
bbox_coder.height_is_top=True in the config, or let fine-tuning adapt it. Converting a file twice turns its boxes again.
"""

from _frame import Converter, run
from bevfusion_mit import TARGETS, fold_boxes, out_first

CONVERTER = Converter(
    __doc__,
    key_map=['vtransform -> view_transform', 'seg_head -> map_head'],
    targets=TARGETS,
    adapt=lambda state: fold_boxes(out_first(state)),
)

if __name__ == '__main__':
    run(CONVERTER)
