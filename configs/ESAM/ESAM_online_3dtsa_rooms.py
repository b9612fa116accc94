# Route 2, small: trains on synthetic rooms on a CPU.
_base_ = ['./ESAM_online_3d_rooms.py']

neck = dict(_delete_=True, type='TinySA', in_channels=_base_.channels, voxel_size=_base_.voxel_size, cell=2)
model = dict(neck=neck)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'*.pos_embed': dict(lr_mult=0.1, decay_mult=0.0)}))
