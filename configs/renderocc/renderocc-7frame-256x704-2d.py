# The same on a bird's-eye-view map: the planes of z are channels until the last layers (FlashOcc's way).
_base_ = './renderocc-7frame-256x704.py'

flat_grid = dict(x=[-40.0, 40.0, 0.4], y=[-40.0, 40.0, 0.4], z=[-1.0, 5.4, 6.4], depth=[1.0, 45.0, 0.5])  # m
flat_channels = 80
model = dict(
    type='RenderOcc2D',
    out_dim=256,
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
