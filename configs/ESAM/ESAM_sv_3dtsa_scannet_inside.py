# Tiny-SA inside the U-Net, behind the encoder's stages 3 and 4, in place of the neck.
_base_ = ['./ESAM_sv_3dtsa_scannet.py']

model = dict(backbone=dict(insert_stages=(3, 4)), neck=None)
