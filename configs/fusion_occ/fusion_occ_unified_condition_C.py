# Observed voxels, and all occupied ones within 35 m, are supervised.
_base_ = './fusion_occ_unified.py'
model = dict(mask_extension=dict(where='occupied', radius=35.0))
