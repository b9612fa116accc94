# FB-OCC as published: ResNet-50, 16 remembered frames, 20 "epochs" of 4.554 passes, whatever the number of processes
# (16 x 4 in the paper, 8 x 4 in the users' table). Iterations are counted from the actual total batch.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_fbocc.py',
    '../_base_/schedules/fbocc_20e.py',
    '../_base_/models/fbocc.py',
]

# True: only voxels that a camera observes are supervised. The metric has its own field (eval_mask) and reports all
# masks anyway.
use_mask = True

# Synchronised batch normalisation of the image branch. Off: every step would wait for the slowest process more than a
# hundred times. With 8 devices of four samples the accuracy hardly changes; with many more devices and fewer samples on
# each it may, then set it to True. (The 3D part is synchronised in any case, see bn3d of the model.)
sync_bn = False

custom_hooks = [
    # the first two epochs train single frames; checkpoints keep what is remembered, so a killed training goes on exactly
    dict(type='HistoryHook', start_epoch=2),
    # the averaged weights are what is evaluated and saved
    dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560, interval=1),
]

# image backbone, neck and depth net, pretrained on depth and semantics (r50_256x705_depth_pretrain.py makes its like)
load_from = 'ckpts/r50_256x705_depth_pretrain.pth'
