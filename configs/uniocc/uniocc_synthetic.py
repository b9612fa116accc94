# UniOcc, small: trains on the synthetic city on two CPU cores and answers on the full 200 x 200 x 16 grid, from 3D
# labels and rendering. The detector of the published configs; what makes it small: a thin ResNet on 160 x 448 pixels of
# one key frame, the 3D encoder at 0.8 m, few channels and rays.
_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/synthetic_city_occ.py',
    '../_base_/schedules/adamw_cosine.py',
]

use_mask = True
eval_mask = 'lidar'

input_size = _base_.data_config.input_size  # (160, 448), (H, W) of the network's images
grid_config = dict(x=[-40.0, 40.0, 0.8], y=[-40.0, 40.0, 0.8], z=[-1.0, 5.4, 0.8], depth=[1.0, 45.0, 1.0])  # m
image_channels = 48
voxel_channels = 24
encoder_channels = [24, 48, 96]
answer_channels = 12
max_rays = 6000  # of a sample
aux_frames = [-1, 1]  # key frames beside this one whose rays supervise it

model = dict(
    type='UniOcc',
    data_preprocessor=dict(type='OccDataPreprocessor', channel_order='rgb'),
    num_adj=0,
    key_ego='lidar',
    out_dim=answer_channels,
    final_kernel=1,
    use_3d_loss=True,
    use_mask=use_mask,
    mask='mask_lidar',  # the city's labels are what the LiDAR can tell
    balance_cls_weight=False,
    initial_opacity=0.02,
    decode='probability',
    test_threshold=0.2,  # cameras alone are seldom sure of a voxel: above one half there is hardly more than road
    nerf_head=dict(
        type='NerfHead',
        point_cloud_range=_base_.occ_range,
        voxel_size=0.4,
        alpha_init=0.02,
        step_size=1.0,
        balance_cls_weight=False,
        weight_depth=0.1,
        weight_semantic=0.5,
        weight_line_of_sight=0.1,
    ),
    img_backbone=dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(1, 3),  # strides 8 and 32
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
    ),
    img_neck=dict(
        type='FPN_LSS',
        in_channels=32 + 128,
        out_channels=image_channels,
        input_feature_index=(0, 1),
        scale_factor=4,
        extra_upsample=None,
    ),
    img_view_transformer=dict(
        type='LSSViewTransformerBEVStereo',
        grid_config=grid_config,
        input_size=input_size,
        in_channels=image_channels,
        out_channels=voxel_channels,
        collapse_z=False,
        loss_depth_weight=0.3,
        depthnet_cfg=dict(stereo=False, use_aspp=False, camera_norm='scale'),
        downsample=_base_.feature_stride,
    ),
    img_bev_encoder_backbone=dict(
        type='CustomResNet3D',
        numC_input=voxel_channels,
        num_layer=[1, 2, 2],
        num_channels=encoder_channels,
        stride=[1, 2, 2],
    ),
    img_bev_encoder_neck=dict(type='LSSFPN3D', in_channels=sum(encoder_channels), out_channels=32),
    occ_upsample=dict(type='SkipUpsample3D', out_channels=answer_channels, scale_factor=2),  # 0.4 m, the label grid
)

make_depth = dict(
    type='PointToMultiViewDepth', grid_config=dict(depth=grid_config['depth']), downsample=_base_.feature_stride
)
make_rays = dict(type='GenerateRays', max_rays=max_rays, key_ego='lidar', balance_strength=0.001)
pack = dict(type='PackOccInputs', exclude_keys=('points',))
both_pipeline = [
    _base_.read_images_train,
    _base_.flip_train,
    _base_.load_points,
    _base_.load_labels,
    make_depth,
    make_rays,
    pack,
]
rays_pipeline = [_base_.read_images_train, _base_.flip_train, _base_.load_points, make_depth, make_rays, pack]
labels_pipeline = [
    _base_.read_images_train,
    _base_.flip_train,
    _base_.load_points,
    _base_.load_labels,
    make_depth,
    pack,
]
test_pipeline = [_base_.read_images_test, _base_.flip_test, _base_.load_labels, _base_.pack]
train_dataloader = dict(
    batch_size=1,  # of a few minutes' samples more is learnt in steps of one than of two
    dataset=dict(pipeline=both_pipeline, num_adjacent=0, aux_frames=aux_frames, label_fraction=1.0),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, num_adjacent=0))
test_dataloader = val_dataloader

# from the image branch that uniocc_synthetic_depth_pretrain.py has trained (--load-from)
load_from = dict(path=None, key_map=['depth_net -> img_view_transformer.depth_net'])

max_epochs = 3
lr = 1.2e-2
train_cfg = dict(val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(type='MuonAdamW', betas=(0.9, 0.99)))  # see fusion_occ_synthetic.py

channels_last = True

linked_fields = [
    dict(name='use_mask', value=use_mask, to='model.use_mask'),
    dict(name='aux_frames', value=aux_frames, to='train_dataloader.dataset.aux_frames'),
]
