# Observed voxels, and all free ones at any distance, are supervised.
_base_ = './fusion_occ_unified.py'
model = dict(mask_extension=dict(where='free', radius=None))
