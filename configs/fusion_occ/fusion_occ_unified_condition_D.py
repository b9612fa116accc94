# Observed voxels, and all free ones within 20 m, are supervised.
_base_ = './fusion_occ_unified.py'
model = dict(mask_extension=dict(where='free', radius=20.0))
