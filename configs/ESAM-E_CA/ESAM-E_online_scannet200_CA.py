# ESAM-E, class-agnostic: FastSAM's masks make the superpoints.
_base_ = ['../ESAM_CA/ESAM_online_scannet200_CA.py']
data_root = 'data/scannet200-mv_fast/'
model = dict(merge_head=dict(norm='layer'), test_cfg=dict(inst_score_thr=0.3))
