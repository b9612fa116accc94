# Cameras alone: no LiDAR encoder, and no LiDAR depth among the inputs (it stays a label of the depth in training).
_base_ = './fusion_occ_synthetic.py'
model = dict(use_lidar=False, point_painting=False, img_view_transformer=dict(use_depth_input=False))
train_dataloader = dict(dataset=dict(pipeline=_base_.camera_train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=_base_.camera_test_pipeline))
test_dataloader = val_dataloader
