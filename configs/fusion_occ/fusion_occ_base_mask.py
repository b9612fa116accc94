# BaseMask of the published model zoo: the loss is over the voxels that a camera observes.
_base_ = './fusion_occ.py'
use_mask = True
