# Full fine-tuning with layer-wise rates.  tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_lidar_80beam.py']

load_from = dict(path=None, min_loaded=0.9)  # --load-from gives the file
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'encoders.lidar': dict(lr_mult=0.3), 'decoder': dict(lr_mult=0.5)})
)
