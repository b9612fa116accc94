# BEVFusion, small: both tasks, trains on the synthetic city on two CPU cores. The published network with fewer channels,
# smaller images and coarser voxels; every field that the transfer guide changes is here, too.
_base_ = ['./bevfusion_multitask.py']

data_root = 'data/synthetic_city/'
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.2, 0.2, 0.2]  # the plane has 64 x 64 cells of 1.6 m
image_size = [128, 320]
map_bound = [-50.0, 50.0, 1.0]  # metres; the published maps have cells of 0.5 m

norm = dict(type='BN', eps=1e-3, momentum=0.1)
width = 32
model = dict(
    data_preprocessor=dict(voxelize_cfg=dict(max_voxels=[30000, 40000])),
    img_backbone=dict(
        _delete_=True,
        type='mmdet.ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
    ),
    img_neck=dict(in_channels=[32, 64, 128], out_channels=width),
    view_transform=dict(
        in_channels=width,
        out_channels=24,
        image_size=image_size,
        feature_size=[16, 40],
        dbound=[1.0, 50.0, 1.0],
    ),
    pts_middle_encoder=dict(
        base_channels=8,
        output_channels=16,
        encoder_channels=((8, 8, 16), (16, 16, 24), (24, 24, 32), (32, 32)),
        encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
        norm_cfg=dict(momentum=0.1),
    ),
    fusion_layer=dict(in_channels=[24, 32], out_channels=48),
    pts_backbone=dict(in_channels=48, out_channels=[48, 64], layer_nums=[2, 2], norm_cfg=norm),
    pts_neck=dict(in_channels=[48, 64], out_channels=[32, 32], norm_cfg=norm),
    bbox_head=dict(
        num_proposals=200,  # a frame of the city has some 100 boxes
        in_channels=64,
        train_cfg=dict(min_radius=1),  # of the larger cells
        hidden_channel=48,
        decoder_layer=dict(
            self_attn_cfg=dict(embed_dims=48, num_heads=4, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=48, num_heads=4, dropout=0.0),
            ffn_cfg=dict(embed_dims=48, feedforward_channels=96, ffn_drop=0.0),
            pos_encoding_cfg=dict(num_pos_feats=48),
        ),
    ),
    map_head=dict(in_channels=64, grid_transform=dict(output_scope=[map_bound, map_bound])),
)

load_points = dict(type='BEVLoadPoints', sweeps_num=4)
load_map = dict(type='LoadBEVSegmentation', xbound=map_bound, ybound=map_bound, classes=_base_.map_classes)
filters = [
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=_base_.object_classes),
]
# resize_lim None: by the size of the files
images_train = dict(type='ImageAug3D', final_dim=image_size, rand_flip=True, is_train=True)
images_test = dict(type='ImageAug3D', final_dim=image_size)
train_pipeline = [
    _base_.load_images,
    load_points,
    _base_.load_boxes,
    images_train,
    dict(
        type='BEVFusionGlobalRotScaleTrans', scale_ratio_range=[0.95, 1.05], rot_range=[-0.4, 0.4], translation_std=0.2
    ),
    load_map,
    _base_.flip,
    *filters,
    _base_.shuffle,
    _base_.pack,
]
test_pipeline = [_base_.load_images, load_points, images_test, load_map, filters[0], _base_.pack]
train_dataloader = dict(
    batch_size=1,  # of a few minutes' samples more is learnt in steps of one than of two
    num_workers=1,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(batch_size=2, num_workers=1, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 12
lr = 4e-3
optim_wrapper = dict(optimizer=dict(type='MuonAdamW', lr=lr))  # see fusion_occ_synthetic.py
channels_last = True
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs, eta_min_ratio=1e-2,
        convert_to_iter_based=True,
    ),
]  # fmt: skip
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
linked_fields_schedule = [
    dict(
        name='max_epochs',
        value=max_epochs,
        to=['train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.1.end', 'param_scheduler.1.T_max'],
    ),
    dict(name='lr', value=lr, to='optim_wrapper.optimizer.lr'),
]
