# Rendering alone: no 3D label is read in training.
_base_ = './uniocc_synthetic.py'

aux_frames = [-2, -1, 1, 2]
model = dict(
    use_3d_loss=False,
    decode='opacity',
    test_threshold=0.1,  # of a short training: solid voxels are seldom opaque yet
    nerf_head=dict(weight_depth=0.5, weight_semantic=1.0, weight_line_of_sight=0.5),
)
train_dataloader = dict(dataset=dict(pipeline=_base_.rays_pipeline))
