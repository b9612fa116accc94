# ESAM-E, class-agnostic: FastSAM's masks make the superpoints.
_base_ = ['../ESAM_CA/ESAM_sv_scannet200_CA.py']
data_root = 'data/scannet200-sv_fast/'
