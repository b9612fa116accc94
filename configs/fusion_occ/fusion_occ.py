# FusionOcc at its published size on nuScenes with Occ3D labels: Swin-B on 6 x 512 x 1408 pixels of two key frames,
# LiDAR of eight, answers on 200 x 200 x 16 voxels.
# Source: FusionOcc, ACM MM 2024 (doi 10.1145/3664647.3681293), and its public config.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_occ.py',
    '../_base_/schedules/adamw_24e.py',
    '../_base_/models/fusion_occ.py',
]

# True: the loss is over the voxels that a camera observes, False: over all voxels.
# Which mask the metric's plain mIoU is under has a field of its own, eval_mask; all masks are always reported.
use_mask = True

custom_hooks = [
    # statistics over all GPUs from the first epoch on
    dict(type='SyncbnControlHook', syncbn_start_epoch=0),
    # weights averaged with decay 0.999 (1 - exp(-t / 2000)), t from 10560 on; validated and saved in place of the last
    dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560),
]

# BEVDet weights, or those of a FusionOcc trained before: what fits is loaded, the report says what does not.
load_from = None
