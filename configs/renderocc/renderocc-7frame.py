# RenderOcc as published: Swin-B at 512 x 1408, 12 epochs, 2D labels of seven frames alone, no 3D label.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_renderocc.py',
    '../_base_/schedules/renderocc.py',
    '../_base_/models/renderocc.py',
]

custom_hooks = [
    # statistics over all GPUs from the first epoch on; a single process needs no process group
    dict(type='SyncbnControlHook', syncbn_start_epoch=0),
    dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560),
]

# BEVDet4D's detector: image branch and depth network; what does not fit is reported
load_from = dict(
    path='ckpts/bevdet-stbase-4d-stereo-512x1408-cbgs.pth', take=['img_backbone', 'img_neck', 'img_view_transformer']
)
