# Progressive unfreezing: the classifier, then also the 3D encoder, then also what joins the sensors, then everything at
# a tenth of the rate. Stages by epoch, counted from 0; the transfer guide's are twice as long, for 12 epochs.
#   tools/train.py configs/custom/city_4cam_80beam_progressive.py --load-from CKPT
_base_ = ['./city_4cam_80beam.py']

lr = 4e-3
custom_hooks = [
    dict(
        type='ProgressiveUnfreezeHook',
        stages=[
            dict(epoch=0, train=['heads']),
            dict(epoch=1, train=['decoder']),
            dict(epoch=2, train=['fuser']),
            dict(epoch=4, train='all', lr_factor=0.1),
        ],
    )
]
