# "Stronger setting", small: a ConvNeXt in place of the ResNet, more voxel channels, the encoder at a finer grid.
_base_ = './uniocc_synthetic.py'

image_channels = 64
voxel_channels = 32
encoder_channels = [48, 96, 128]
answer_channels = 16
fine_grid = dict(x=[-40.0, 40.0, 0.4], y=[-40.0, 40.0, 0.4], z=[-1.0, 5.4, 0.4], depth=[1.0, 45.0, 1.0])  # m
model = dict(
    out_dim=answer_channels,
    img_backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=[2, 2, 4, 2], channels=[24, 48, 96, 192]),
        out_indices=(1, 3),
        layer_scale_init_value=0.0,
    ),
    img_neck=dict(in_channels=48 + 192, out_channels=image_channels),
    img_view_transformer=dict(grid_config=fine_grid, in_channels=image_channels, out_channels=voxel_channels),
    img_bev_encoder_backbone=dict(numC_input=voxel_channels, num_channels=encoder_channels, stride=[2, 2, 2]),
    img_bev_encoder_neck=dict(in_channels=sum(encoder_channels), out_channels=48),
    occ_upsample=dict(out_channels=answer_channels),
)
