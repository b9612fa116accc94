# A tenth of the key frames labelled, and no others seen: 3D labels alone.
_base_ = './uniocc_synthetic_labels.py'

label_fraction = 0.1
max_epochs = 30  # as many steps as with all labels
frames = dict(_base_.train_dataloader.dataset, pipeline=_base_.labels_pipeline, aux_frames=[], label_fraction=0.1)
train_dataloader = dict(dataset=dict(_delete_=True, type='LabelledFrames', dataset=frames))
linked_fields_data = [
    dict(
        name='data_root',
        value=_base_.data_root,
        to=[
            'train_dataloader.dataset.dataset.data_root',
            'val_dataloader.dataset.data_root',
            'test_dataloader.dataset.data_root',
        ],
    ),
    dict(name='label_fraction', value=label_fraction, to='train_dataloader.dataset.dataset.label_fraction'),
]
linked_fields = [dict(name='use_mask', value=True, to='model.use_mask')]
