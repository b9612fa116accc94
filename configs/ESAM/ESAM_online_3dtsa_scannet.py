# Route 2, online: Tiny-SA, two attention blocks behind the U-Net.
_base_ = ['./ESAM_online_3d_scannet.py']

load_from = 'work_dirs/3dtsa_sv/epoch_128.pth'  # the single-frame model
model = dict(neck=dict(_delete_=True, type='TinySA', in_channels=96))
# its position codes learn slowly, and do not decay
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'*.pos_embed': dict(lr_mult=0.1, decay_mult=0.0)}))
