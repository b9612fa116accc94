# Another domain: image and LiDAR backbones from the checkpoint, everything behind them anew.
#   tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_4cam_80beam.py']

load_from = dict(path=None, take=['encoders.camera.backbone', 'encoders.camera.neck', 'encoders.lidar.backbone'])
