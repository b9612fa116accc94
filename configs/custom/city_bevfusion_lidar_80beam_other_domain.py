# Another domain: the LiDAR encoder from the checkpoint, everything behind it anew.  tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_lidar_80beam.py']

load_from = dict(path=None, take=['encoders.lidar.backbone'])
