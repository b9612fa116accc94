# ESAM-E: FastSAM's masks make the superpoints.
_base_ = ['../ESAM/ESAM_sv_scannet.py']
data_root = 'data/scannet-sv_fast/'
