# Frozen encoder: decoder and heads train.  tools/train.py FILE --load-from CKPT
_base_ = ['./city_bevfusion_lidar_80beam.py']

load_from = dict(path=None, min_loaded=0.9)  # --load-from gives the file
freeze = ['encoders.lidar']
