# A third-party student of FusionOcc from cameras alone: the LiDAR's depth is a label and no input. The encoder of that
# input is there, as in the original; img_view_transformer.use_depth_input=True feeds it.
_base_ = './fusion_occ_occ3d_nuscenes_swinT_student_64x64_128d.py'

camera_channels = 64
encoder_channels = [64, 128, 256]
out_channels = 64
lidar_channels = 0

model = dict(
    use_lidar=False,
    lidar_out_channel=lidar_channels,
    out_dim=out_channels,
    img_view_transformer=dict(use_depth_input=False),
    occ_encoder_backbone=dict(numC_input=camera_channels, num_channels=encoder_channels),
    occ_encoder_neck=dict(in_channels=sum(encoder_channels), out_channels=out_channels),
)

train_pipeline = [
    _base_.train_pipeline[0],
    _base_.load_labels,
    _base_.load_points,
    _base_.load_lidarseg,
    _base_.train_pipeline[4],
    _base_.to_ego,
    *_base_.train_pipeline[-3:-1],
    dict(type='PackOccInputs', exclude_keys=('points',)),
]
test_pipeline = [
    _base_.test_pipeline[0],
    _base_.load_labels,
    dict(type='BEVAug', bda_aug_conf=_base_.bda_aug_conf),
    dict(type='PackOccInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
