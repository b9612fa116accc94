# What single frames and scenes of ScanNet with 200 classes have in common.
num_classes = 200
stuff_classes = [0, 1]  # wall, floor

flip = dict(
    type='RandomFlip3D', sync_2d=False, flip_ratio_bev_horizontal=0.5, flip_ratio_bev_vertical=0.5
)  # fmt: skip
rotate = dict(
    type='GlobalRotScaleTrans',
    rot_range=[-3.14, 3.14],  # radians
    scale_ratio_range=[0.8, 1.2],
    translation_std=[0.1, 0.1, 0.1],  # metres
    shift_height=False,
)
normalize = dict(
    type='NormalizePointsColor_',
    color_mean=[121.87265261401, 109.732557961814, 95.61477873999799],
    color_std=[72.2790247614, 70.293699472075, 68.898390804783],
)
train_keys = [
    'points',
    'gt_labels_3d',
    'pts_semantic_mask',
    'pts_instance_mask',
    'sp_pts_mask',
    'gt_sp_masks',
    'elastic_coords',
]
test_keys = ['points', 'sp_pts_mask']

train_dataloader = dict(
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ignore_index=num_classes, test_mode=False),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ignore_index=num_classes, test_mode=True),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='UnifiedSegMetric', stuff_class_inds=stuff_classes, eval_mode='cat_agnostic', class_groups='scannet200'
)
test_evaluator = val_evaluator

data_root_fields = [f'{loader}_dataloader.dataset.data_root' for loader in ('train', 'val', 'test')]
