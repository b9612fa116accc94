# The published deployment variant: the same weights, nothing recomputed, batch normalisation within the process.
_base_ = './fbocc-r50-cbgs_depth_16f_16x4_20e.py'

bn3d = dict(type='BN3d', requires_grad=True)
model = dict(
    history_norm_cfg=bn3d,
    img_backbone=dict(with_cp=False),
    depth_net=dict(with_cp=False),
    img_bev_encoder_backbone=dict(with_cp=False, norm_cfg=bn3d),
    img_bev_encoder_neck=dict(with_cp=False, norm_cfg=bn3d),
    occupancy_head=dict(with_cp=False, norm_cfg=bn3d),
)
