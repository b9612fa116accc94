# Route 1, single frames: pure 3D, without boxes, images or Tiny-SA. Two processes of 8 frames.
_base_ = ['../ESAM_CA/ESAM_sv_scannet200_CA.py']

max_epochs = 128
lr = 6e-4
warmup = 1000  # iterations
optim_wrapper = dict(type='OccAmpOptimWrapper', loss_scale='dynamic', optimizer=dict(weight_decay=1e-2))
param_scheduler = _base_.cosine_schedule
linked_fields_cosine = [
    dict(name='max_epochs', value=max_epochs, to='param_scheduler.0.T_max'),
    dict(name='warmup', value=warmup, to='param_scheduler.1.end'),
]
train_dataloader = dict(batch_size=8)
model = dict(img_backbone=None, neck=None)
