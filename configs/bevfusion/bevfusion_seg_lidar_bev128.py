# Map segmentation from the LiDAR: mIoU 48.56 published. Source: MIT's seg/lidar-centerpoint-bev128.yaml.
_base_ = ['./bevfusion_seg_lidar-cam_bev256d2-lss.py']

model = dict(img_backbone=None, img_neck=None, view_transform=None, fusion_layer=None)
modality = dict(use_camera=False, use_lidar=True)
train_dataloader = dict(dataset=dict(modality=modality))
val_dataloader = dict(dataset=dict(modality=modality))
test_dataloader = val_dataloader
optim_wrapper = dict(paramwise_cfg=None)
