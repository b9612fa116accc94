# Route 1, online, small: trains on synthetic rooms on a CPU, from the single-frame model.
#   tools/create_data.py scannet200_mv --root-path data/synthetic_rooms --out-dir data/rooms-mv --rec-dir data/rooms \
#       --num-sample 4000
_base_ = ['./ESAM_online_3d_scannet.py']

load_from = None  # --load-from work_dirs/rooms_sv/epoch_12.pth
data_root = 'data/rooms-mv/'
rec_root = 'data/rooms'
num_frames = 4
num_sample = 4000  # points of a frame
voxel_size = 0.05  # metres
channels = 32
max_epochs = 12
lr = 2e-3
backbone = dict(
    planes=[16, 16, 32, 32, 32, 32, 32, channels], init_dim=16, layers=[1, 1, 1, 1, 1, 1, 1, 1], out_channels=channels
)
# Instances are merged by boxes, as in the published configs: by distance, what a frame shows anew is joined with
# something far away (AP50 of scenes 19 instead of 49).
model = dict(
    voxel_size=voxel_size,
    backbone=backbone,
    pool=dict(channel_proj=channels),
    use_bbox=True,
    decoder=dict(in_channels=channels, d_model=64, num_heads=4, hidden_dim=128, bbox_flag=True),
    # the memory starts as the identity: these few steps begin with what single frames have taught
    memory=dict(in_channels=[16, 16, 32, 32], zero_init=True),
    merge_head=dict(in_channels=64, out_channels=64, norm='layer'),
    test_cfg=dict(npoint_thr=20, inst_score_thr=0.1, stream=dict(num_sample=num_sample)),
)
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='MuonAdamW', lr=lr, weight_decay=1e-2),
                     clip_grad=dict(max_norm=10, norm_type=2))  # fmt: skip
load_train = dict(
    _base_.load_train, num_sample=num_sample, num_frames=num_frames, rec_root=rec_root, with_rec=True, cat_rec=True
)
load_test = dict(_base_.load_test, num_sample=num_sample, rec_root=rec_root)
train_keys = [*_base_.train_keys, 'gt_bboxes_3d']
train_pipeline = [
    load_train,
    *_base_.train_pipeline[1:-3],
    dict(_base_.superpoint_labels, with_rec=True),
    dict(_base_.elastic, voxel_size=voxel_size, p=0.0, with_rec=True),
    dict(_base_.boxes, voxel_size=voxel_size),
    dict(type='Pack3DDetInputs_Online', keys=train_keys),
]
test_pipeline = [load_test, *_base_.test_pipeline[1:]]
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(min_region_size=20)
test_evaluator = val_evaluator
linked_fields_data = [
    dict(name='data_root', value=data_root, to=_base_.data_root_fields),
    dict(name='rec_root', value=rec_root, to=[*_base_.rec_root_fields, 'train_dataloader.dataset.pipeline.0.rec_root']),
    dict(name='num_frames', value=num_frames, to='train_dataloader.dataset.pipeline.0.num_frames'),
]
warmup = 10  # iterations
param_scheduler = [
    dict(
        type='CosineAnnealingLR', begin=0, end=max_epochs, T_max=max_epochs, by_epoch=True, convert_to_iter_based=True
    ),
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=warmup),
]
