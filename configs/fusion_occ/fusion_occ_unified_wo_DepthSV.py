# The predicted depth is not supervised.
_base_ = './fusion_occ_unified.py'
model = dict(depth_loss_weight=0.0)
