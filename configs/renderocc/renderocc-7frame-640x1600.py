# Swin-B at 640 x 1600, 24 epochs, 2D labels alone.
_base_ = './renderocc-7frame.py'

max_epochs = 24
rays_pipeline = _base_.rays_pipeline
rays_pipeline[0].data_config.input_size = (640, 1600)
test_pipeline = _base_.test_pipeline
test_pipeline[0].data_config.input_size = (640, 1600)
model = dict(img_view_transformer=dict(input_size=(640, 1600)))
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=rays_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
