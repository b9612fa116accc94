# Observed voxels, and all occupied ones at any distance, are supervised.
_base_ = './fusion_occ_unified.py'
model = dict(mask_extension=dict(where='occupied', radius=None))
