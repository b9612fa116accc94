# Route 1 with stochastic weight averaging: the mean of the weights over the last quarter of the training, in which the
# learning rate stays. Any other config the same way.
_base_ = ['./ESAM_sv_3d_scannet.py']

swa_begin = 96  # epochs before the averaging
param_scheduler = [
    dict(type='CosineAnnealingLR', begin=0, end=swa_begin, T_max=swa_begin, eta_min=6e-5, convert_to_iter_based=True),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1000),  # iterations
]
custom_hooks = [dict(type='OccEMAHook', ramp='mean', begin_epoch=swa_begin)]
linked_fields_schedule = [
    dict(name='max_epochs', value=_base_.max_epochs, to=['train_cfg.max_epochs', 'train_cfg.val_interval']),
    dict(name='lr', value=_base_.lr, to='optim_wrapper.optimizer.lr'),
]
linked_fields_cosine = [
    dict(
        name='swa_begin',
        value=swa_begin,
        to=['param_scheduler.0.end', 'param_scheduler.0.T_max', 'custom_hooks.0.begin_epoch'],
    ),
]
