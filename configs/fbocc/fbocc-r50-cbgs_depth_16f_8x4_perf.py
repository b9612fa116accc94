# 600 steps of the published training, no evaluation: how fast is a step? Used by test/train_8p_performance.sh.
_base_ = './fbocc-r50-cbgs_depth_16f_16x4_20e.py'

train_cfg = dict(_delete_=True, by_epoch=False, max_iters=600)
val_cfg = None
val_dataloader = None
val_evaluator = None
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(by_epoch=False, interval=10_000, save_last=False),
    metrics_csv=dict(interval=50),
)
log_processor = dict(by_epoch=False)
