# Progressive unfreezing, stages by epoch; the transfer guide's are twice as long, for 12 epochs.
#   tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_lidar_80beam.py']

load_from = dict(path=None, min_loaded=0.9)  # --load-from gives the file
custom_hooks = [
    dict(
        type='ProgressiveUnfreezeHook',
        stages=[
            dict(epoch=0, train=['heads']),
            dict(epoch=1, train=['decoder']),
            dict(epoch=3, train='all', lr_factor=0.1),
        ],
    )
]
