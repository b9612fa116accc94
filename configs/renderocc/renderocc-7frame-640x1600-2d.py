# Swin-B at 640 x 1600 on a bird's-eye-view map, 2D and 3D labels, 24 epochs.
_base_ = ['./renderocc-7frame-640x1600.py']

flat_grid = dict(x=[-40.0, 40.0, 0.4], y=[-40.0, 40.0, 0.4], z=[-1.0, 5.4, 6.4], depth=[1.0, 45.0, 0.5])  # m
flat_channels = 80
use_mask = True
model = dict(
    type='RenderOcc2D',
    out_dim=256,
    use_3d_loss=True,
    nerf_head=dict(weight_depth=0.1, weight_semantic=0.1),
    img_view_transformer=dict(grid_config=flat_grid, out_channels=flat_channels, collapse_z=True),
    pre_process=dict(
        _delete_=True,
        type='CustomResNet',
        numC_input=flat_channels,
        num_layer=[2],
        num_channels=[flat_channels],
        stride=[1],
        backbone_output_ids=[0],
    ),
    img_bev_encoder_backbone=dict(
        _delete_=True,
        type='CustomResNet',
        numC_input=flat_channels * 2,
        num_layer=[2, 2, 2],
        num_channels=[flat_channels * 2, flat_channels * 4, flat_channels * 8],
        stride=[2, 2, 2],
    ),
    img_bev_encoder_neck=dict(
        _delete_=True,
        type='FPN_LSS',
        in_channels=flat_channels * 10,
        out_channels=256,
        scale_factor=4,
        input_feature_index=(0, 2),
        extra_upsample=2,
    ),
)
both_pipeline = _base_.both_pipeline
both_pipeline[0].data_config.input_size = (640, 1600)
train_dataloader = dict(dataset=dict(pipeline=both_pipeline))
