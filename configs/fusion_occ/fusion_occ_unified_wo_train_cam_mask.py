# All voxels are supervised.
_base_ = './fusion_occ_unified.py'
use_mask = False
