# Ours after UniOcc's "stronger setting", whose numbers are not published: ConvNeXt-Base pretrained on ImageNet-22k at
# 640 x 1600, twice the voxel channels, voxels of 0.2 m where rays look and means of them where labels are.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/nuscenes_renderocc.py',
    '../_base_/schedules/renderocc.py',
    '../_base_/models/renderocc.py',
]

input_size = (640, 1600)
voxel_channels = 64
max_epochs = 24
use_mask = True
model = dict(
    type='UniOcc',
    out_dim=32,
    use_3d_loss=True,
    label_ratio=2,
    nerf_head=dict(voxel_size=0.2, weight_line_of_sight=0.1),
    img_backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch='base',
        out_indices=(2, 3),
        drop_path_rate=0.4,
        return_stereo_feat=True,
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint='ckpts/convnext_base_22k_1k_224.pth'),
    ),
    img_neck=dict(in_channels=512 + 1024),
    img_view_transformer=dict(input_size=input_size, out_channels=voxel_channels),
    pre_process=dict(numC_input=voxel_channels, num_channels=[voxel_channels]),
    img_bev_encoder_backbone=dict(
        numC_input=voxel_channels * 2, num_channels=[voxel_channels, voxel_channels * 2, voxel_channels * 4]
    ),
    img_bev_encoder_neck=dict(in_channels=voxel_channels * 7, out_channels=voxel_channels),
    occ_upsample=dict(type='SkipUpsample3D', out_channels=32, scale_factor=2),  # 0.2 m
)
both_pipeline = _base_.both_pipeline
both_pipeline[0].data_config.input_size = input_size
test_pipeline = _base_.test_pipeline
test_pipeline[0].data_config.input_size = input_size
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=both_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
custom_hooks = [
    dict(type='SyncbnControlHook', syncbn_start_epoch=0),
    dict(type='OccEMAHook', decay=0.999, ramp='exp', ramp_length=2000, init_updates=10560),
]
