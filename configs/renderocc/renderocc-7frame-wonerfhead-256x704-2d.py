# The same without rendering: 3D labels alone.
_base_ = './renderocc-7frame-256x704-2d.py'

model = dict(nerf_head=None, initial_opacity=None)
labels_pipeline = _base_.labels_pipeline
labels_pipeline[0].data_config.input_size = (256, 704)
train_dataloader = dict(dataset=dict(pipeline=labels_pipeline))
aux_frames = []
