# Bi-Fusion with a 3D branch that stays as it was loaded, except for its first two stages.
_base_ = ['./ESAM_sv_bifusion_scannet.py']

model = dict(bi_encoder=dict(freeze_3d='all', unfreeze_3d=['block1', 'block2']))
