# ESAM-E+FF: FastSAM's image features join the stem of the U-Net. img_backbone: a module that turns images
# (B, 3, H, W), 0..255, into its (B, 960, h, w); None: the weights load, and forward says what is missing.
_base_ = ['../ESAM-E/ESAM-E_sv_scannet.py']
model = dict(type='ScanNet200MixFormer3D_FF', img_backbone=None)
load_image = dict(type='LoadFrameImage')
train_pipeline = [
    _base_.load_points,
    _base_.load_labels,
    load_image,
    _base_.map_labels,
    _base_.normalize,
    _base_.superpoint_labels,
    dict(type='Pack3DDetInputs_', keys=[*_base_.train_keys[:-1], 'img', 'depth2img']),
]  # the points stay where the camera saw them: no augmentation
test_pipeline = [
    _base_.load_points,
    _base_.load_labels,
    load_image,
    _base_.map_labels,
    _base_.normalize,
    _base_.superpoint_labels,
    dict(type='Pack3DDetInputs_', keys=[*_base_.test_keys, 'img', 'depth2img']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
