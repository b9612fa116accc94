# ESAM-E: FastSAM's masks make the superpoints.
_base_ = ['../ESAM/ESAM_online_scannet.py']
data_root = 'data/scannet-mv_fast/'
model = dict(test_cfg=dict(inst_score_thr=0.21))
