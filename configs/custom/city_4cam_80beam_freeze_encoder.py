# Frozen encoders: only what comes after them trains; the batch normalisations in them keep their statistics.
#   tools/train.py configs/custom/city_4cam_80beam_freeze_encoder.py --load-from CKPT
_base_ = ['./city_4cam_80beam.py']

lr = 8e-3
freeze = ['encoders.camera', 'encoders.lidar']
