# Only voxels that a camera observes are supervised.
_base_ = './fusion_occ_synthetic.py'
use_mask = True
