# Observed voxels, and all free ones within 35 m, are supervised.
_base_ = './fusion_occ_unified.py'
model = dict(mask_extension=dict(where='free', radius=35.0))
