# BaseWoMask of the published model zoo: the loss is over all voxels.
_base_ = './fusion_occ.py'
use_mask = False
