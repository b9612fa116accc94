# ESAM-E+FF: FastSAM's image features join the stem of the U-Net. img_backbone: a module that turns images
# (B, 3, H, W), 0..255, into its (B, 960, h, w); None: the weights load, and forward says what is missing.
_base_ = ['../ESAM-E/ESAM-E_online_scannet.py']
model = dict(type='ScanNet200MixFormer3D_FF_Online', img_backbone=None, test_cfg=dict(inst_score_thr=0.3))
load_train = dict(_base_.load_train, use_FF=True)
load_test = dict(_base_.load_test, use_FF=True)
no_elastic = dict(_base_.elastic, p=0.0)
train_pipeline = [
    load_train,
    _base_.map_labels,
    _base_.normalize,
    _base_.superpoint_labels,
    no_elastic,
    _base_.boxes,
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.train_keys, 'gt_bboxes_3d', 'img', 'depth2img']),
]  # the points stay where the camera saw them: no augmentation
test_pipeline = [
    load_test,
    *_base_.test_pipeline[1:-1],
    dict(type='Pack3DDetInputs_Online', keys=[*_base_.test_keys, 'img', 'depth2img']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
