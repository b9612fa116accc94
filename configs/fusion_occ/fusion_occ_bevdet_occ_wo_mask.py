# From BEVDet's occupancy model: its image backbone and the encoder of each frame's volume, whole.
# Trained over all voxels.
_base_ = './fusion_occ_base_wo_mask.py'
load_from = dict(
    _delete_=True,
    path='ckpts/bevdet-occ-stbase-4d-stereo-512x1408-24e.pth',
    take=['img_backbone', 'pre_process_net'],
    min_loaded=1.0,
)
