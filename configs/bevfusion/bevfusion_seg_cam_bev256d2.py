# Map segmentation from cameras: mIoU 57.09 published. Source: MIT's seg/camera-bev256d2.yaml.
_base_ = ['./bevfusion_seg_lidar-cam_bev256d2-lss.py']

model = dict(
    pts_middle_encoder=None,
    fusion_layer=None,
    pts_backbone=dict(
        _delete_=True, type='GeneralizedResNet', in_channels=80, blocks=[[2, 160, 2], [2, 320, 2], [2, 640, 1]]
    ),
    pts_neck=dict(
        _delete_=True, type='LSSFPN', in_indices=[-1, 0], in_channels=[640, 160], out_channels=256, scale_factor=2
    ),
    map_head=dict(in_channels=256, grid_transform=dict(input_scope=[[-51.2, 51.2, 0.8], [-51.2, 51.2, 0.8]])),
)
