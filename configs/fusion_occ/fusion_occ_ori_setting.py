# The published recipe as the mmdet3d-1.x port trains it: the average's decay does not rise, it is 0.999 at once.
_base_ = './fusion_occ.py'
custom_hooks = [_base_.custom_hooks[0], dict(type='OccEMAHook', decay=0.999, ramp=None)]
