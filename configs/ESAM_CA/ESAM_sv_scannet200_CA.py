# ESAM, class-agnostic, single frames of ScanNet200. The published training starts from a Mask3D backbone:
#   --load-from work_dirs/tmp/mask3d_scannet200.pth
_base_ = [
    '../_base_/esam_runtime.py',
    '../_base_/models/esam_sv.py',
    '../_base_/datasets/scannet200_sv.py',
    '../_base_/schedules/esam_128e.py',
]
