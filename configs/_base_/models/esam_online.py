# ESAM frame after frame: the single-frame model with a memory of voxels, boxes, and merging of instances.
_base_ = ['./esam_sv.py']

model = dict(
    type='ScanNet200MixFormer3D_Online',
    use_bbox=True,  # merging by boxes; False: by distance
    memory=dict(type='MultilevelMemory', in_channels=[32, 64, 128, 256], queue=-1, vmp_layer=(0, 1, 2, 3)),
    decoder=dict(bbox_flag=True),
    merge_head=dict(type='MergeHead', in_channels=256, out_channels=256, norm='layer'),
    merge_criterion=dict(type='ScanNetMergeCriterion_Fast', tmp=True, p2s=False),
    test_cfg=dict(topk_insts=20, inscat_topk_insts=100, inst_score_thr=0.3, merge_type='learnable_online'),
)
