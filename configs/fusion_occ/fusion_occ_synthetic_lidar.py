# LiDAR alone: no camera branch, and no images are read.
_base_ = './fusion_occ_synthetic.py'
model = dict(use_camera=False, point_painting=False)
train_dataloader = dict(dataset=dict(pipeline=_base_.lidar_train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.lidar_test_pipeline))
test_dataloader = val_dataloader
