# The published recipe as the mmdet3d-1.x port trains it; what differs here from fusion_occ.py is the moving average:
# momentum 0.001 from the first iteration on.
_base_ = './fusion_occ.py'
