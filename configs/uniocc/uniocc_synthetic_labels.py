# 3D labels alone, no rendering: what rendering is compared with.
_base_ = './uniocc_synthetic.py'

aux_frames = []
model = dict(nerf_head=None, initial_opacity=None)
train_dataloader = dict(dataset=dict(pipeline=_base_.labels_pipeline))
