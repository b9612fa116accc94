# 2D and 3D labels: ResNet-50 at 256 x 704, 24 epochs, the camera's mask.
# Source: the public config of the same name, which has UniOcc's losses.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_renderocc.py',
    '../_base_/schedules/renderocc.py',
    '../_base_/models/renderocc_r50.py',
]

max_epochs = 24
use_mask = True
model = dict(use_3d_loss=True, nerf_head=dict(weight_depth=0.1, weight_semantic=0.1))

data_config = dict(input_size=(256, 704))
both_pipeline = _base_.both_pipeline
both_pipeline[0].data_config.input_size = (256, 704)
test_pipeline = _base_.test_pipeline
test_pipeline[0].data_config.input_size = (256, 704)
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=both_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

custom_hooks = [
    dict(type='SyncbnControlHook', syncbn_start_epoch=0),
    dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560),
]
load_from = dict(path='ckpts/bevdet-r50-4d-stereo-cbgs.pth', take=['img_backbone', 'img_neck', 'img_view_transformer'])
