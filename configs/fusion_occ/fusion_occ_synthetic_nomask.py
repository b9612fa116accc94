# All voxels are supervised.
_base_ = './fusion_occ_synthetic.py'
use_mask = False
