# Full fine-tuning: everything trains, what comes first and is most general at a fraction of the rate.
#   tools/train.py configs/custom/city_4cam_80beam_finetune.py --load-from CKPT
_base_ = ['./city_4cam_80beam.py']

lr = 8e-3
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # names of MIT's BEVFusion; FusionOcc's modules are found by their aliases
            'encoders.camera.backbone': dict(lr_mult=0.1),
            'encoders.camera.neck': dict(lr_mult=0.3),
            'encoders.lidar': dict(lr_mult=0.3),
            'decoder': dict(lr_mult=0.5),
        }
    ),
)
