# A tenth of the key frames has 3D labels; 2D labels supervise all of them by rendering.
_base_ = './uniocc_synthetic.py'

label_fraction = 0.1
both_pipeline = _base_.both_pipeline
both_pipeline[5].unlabelled_semantics = True
train_dataloader = dict(dataset=dict(pipeline=both_pipeline, label_fraction=label_fraction))
