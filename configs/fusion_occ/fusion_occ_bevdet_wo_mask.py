# From BEVDet's detector: its image backbone, whole. Nothing else of it fits, although names agree in places.
# Trained over all voxels.
_base_ = './fusion_occ_base_wo_mask.py'
load_from = dict(
    _delete_=True, path='ckpts/bevdet-stbase-4d-stereo-512x1408-cbgs.pth', take=['img_backbone'], min_loaded=1.0
)
