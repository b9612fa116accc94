# ESAM, class-agnostic, online on ScanNet200; starts from the single-frame model: --load-from SV_CHECKPOINT
_base_ = [
    '../_base_/esam_runtime.py',
    '../_base_/models/esam_online.py',
    '../_base_/datasets/scannet200_mv.py',
    '../_base_/schedules/esam_128e.py',
]
model = dict(merge_head=dict(norm='batch'), test_cfg=dict(inst_score_thr=0.25))
