# A tenth of the key frames has 3D labels; 2D labels supervise all of them by rendering. Half of each batch is labelled.
_base_ = './uniocc_synthetic.py'

label_fraction = 0.1
both_pipeline = _base_.both_pipeline
both_pipeline[5].unlabelled_semantics = True
max_epochs = 3  # an epoch shows every unlabelled frame once: nearly as many steps as with all labels, of two frames
train_dataloader = dict(
    batch_size=2,
    batch_sampler=dict(type='LabelMixBatchSampler', labelled=1),
    dataset=dict(pipeline=both_pipeline, label_fraction=label_fraction),
)
