# Full fine-tuning with layer-wise rates.  tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_4cam_80beam.py']

load_from = dict(path=None, min_loaded=0.9)  # --load-from gives the file
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'encoders.camera.backbone': dict(lr_mult=0.1),
            'encoders.camera.neck': dict(lr_mult=0.3),
            'encoders.lidar': dict(lr_mult=0.3),
            'fuser': dict(lr_mult=0.5),
            'decoder': dict(lr_mult=0.5),
        }
    )
)
