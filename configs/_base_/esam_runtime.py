# What ESAM's configs share: a line each 50 iterations, three checkpoints and the best by AP50.
_base_ = ['./default_runtime.py']

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=1, max_keep_ckpts=3, save_best=['all_ap_50%'], rule='greater'),
)
