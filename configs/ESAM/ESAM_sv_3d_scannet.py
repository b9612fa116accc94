# Route 1, single frames: pure 3D, without boxes, images or Tiny-SA. Two processes of 8 frames.
_base_ = ['../ESAM_CA/ESAM_sv_scannet200_CA.py']

max_epochs = 128
lr = 6e-4
optim_wrapper = dict(type='OccAmpOptimWrapper', loss_scale='dynamic', optimizer=dict(weight_decay=1e-2))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),  # iterations
]
linked_fields_cosine = [dict(name='max_epochs', value=max_epochs, to='param_scheduler.0.T_max')]
train_dataloader = dict(batch_size=8)
model = dict(img_backbone=None, neck=None)
