# 3D labels alone, over all voxels.
_base_ = './uniocc_synthetic_labels.py'
use_mask = False
