# What rays see of the classified voxels supervises them besides the 3D labels: model.render_head, and the rays for it.
_base_ = './fusion_occ_synthetic.py'

model = dict(
    render_head=dict(
        type='NerfHead',
        alpha_init=0.5,  # a voxel's opacity is its probability of being occupied
        step_size=1.0,
        balance_cls_weight=False,
        weight_depth=0.05,
        weight_semantic=0.1,
        weight_line_of_sight=0.05,
    )
)
train_pipeline = _base_.train_pipeline
train_pipeline.insert(
    len(train_pipeline) - 1, dict(type='GenerateRays', max_rays=6000, key_ego='lidar', balance_strength=0.001)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
