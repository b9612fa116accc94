# The baseline without rendering: Swin-B at 512 x 1408, every voxel classified from 3D labels, 24 epochs.
_base_ = './renderocc-7frame.py'

max_epochs = 24
model = dict(
    _delete_=True,
    type='BEVStereo4DOCC',
    loss_occ=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    num_classes=18,
    use_mask=False,
    **{
        name: _base_.model[name]
        for name in (
            'data_preprocessor',
            'num_adj',
            'out_dim',
            'use_lss_depth_loss',
            'img_backbone',
            'img_neck',
            'img_view_transformer',
            'pre_process',
            'img_bev_encoder_backbone',
            'img_bev_encoder_neck',
        )
    },
)
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=_base_.labels_pipeline, aux_frames=[]))
aux_frames = []
