# Route 1, single frames, small: trains on synthetic rooms on a CPU.
#   tools/create_data.py synthetic_rooms --root-path data/synthetic_rooms --rooms 32 --frames 11 --held-out 8
#   tools/create_data.py scannet200_sv --root-path data/synthetic_rooms --out-dir data/rooms-sv --num-sample 4000 --step 40
_base_ = ['./ESAM_sv_3d_scannet.py']

data_root = 'data/rooms-sv/'
voxel_size = 0.05  # metres
channels = 32
max_epochs = 12
lr = 4e-3
backbone = dict(
    planes=[16, 16, 32, 32, 32, 32, 32, channels], init_dim=16, layers=[1, 1, 1, 1, 1, 1, 1, 1], out_channels=channels
)
model = dict(
    voxel_size=voxel_size,
    backbone=backbone,
    pool=dict(channel_proj=channels),
    decoder=dict(in_channels=channels, d_model=64, num_heads=4, hidden_dim=128),
    test_cfg=dict(npoint_thr=20),
)
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='MuonAdamW', lr=lr, weight_decay=1e-2),
                     clip_grad=dict(max_norm=10, norm_type=2))  # fmt: skip
elastic = dict(_base_.elastic, voxel_size=voxel_size, p=0.0)
train_pipeline = [*_base_.train_pipeline[:-2], elastic, _base_.train_pipeline[-1]]
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
val_evaluator = dict(min_region_size=20)
test_evaluator = val_evaluator
warmup = 10  # iterations
param_scheduler = [
    dict(
        type='CosineAnnealingLR', begin=0, end=max_epochs, T_max=max_epochs, by_epoch=True, convert_to_iter_based=True
    ),
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=warmup),
]
