# The mmdet3d-1.x port's common recipe for its comparisons: a higher rate except in the pretrained parts, the gradients
# of eight steps together, no image augmentation, no moving average, no synchronised statistics.
_base_ = './fusion_occ.py'

data_config = dict(resize=(0.0, 0.0), rot=(0.0, 0.0), flip=False)
train_pipeline = [
    dict(
        type='PrepareImageInputs',
        data_config=dict(_base_.data_config, **data_config),
        is_train=True,
        num_adjacent=_base_.camera_frames,
    ),
    *_base_.train_pipeline[1:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_epochs = 24
lr = 2e-4
optim_wrapper = dict(
    optimizer=dict(lr=lr),
    clip_grad=dict(max_norm=35.0),
    accumulative_counts=8,
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1), img_view_transformer=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=500),  # iterations
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)  # two GPUs, one sample each, eight steps
custom_hooks = []
load_from = dict(
    _delete_=True,
    path='ckpts/bevdet-occ-stbase-4d-stereo-512x1408-24e.pth',
    take=['img_backbone', 'pre_process_net'],
    min_loaded=1.0,
)
