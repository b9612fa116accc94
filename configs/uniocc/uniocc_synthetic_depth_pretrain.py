# The small UniOcc's image branch learns depth from the LiDAR's points alone: no class and no label is read. The other
# small configs take the checkpoint with --load-from.
_base_ = ['./uniocc_synthetic.py']

small = _base_.model
view = small.img_view_transformer
lower, upper, step = view.grid_config.depth
model = dict(
    _delete_=True,
    type='DepthSemanticPretrainer',
    num_classes=None,
    data_preprocessor=small.data_preprocessor,
    img_backbone=small.img_backbone,
    img_neck=small.img_neck,
    depth_net=dict(
        type='CM_DepthNet',
        in_channels=view.in_channels,
        context_channels=view.out_channels,
        depth_channels=round((upper - lower) / step),
        mid_channels=view.in_channels,
        use_aspp=view.depthnet_cfg.use_aspp,
        camera_norm=view.depthnet_cfg.camera_norm,
        input_size=view.input_size,
        downsample=view.downsample,
        grid_config=view.grid_config,
        loss_depth_weight=1.0,
    ),
)
linked_fields = []

train_pipeline = [_base_.read_images_train, _base_.load_points, _base_.make_depth, _base_.pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, aux_frames=[]))
# nothing to score: depth of images has no metric here
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
linked_fields_data = [dict(name='data_root', value=_base_.data_root, to='train_dataloader.dataset.data_root')]
find_unused_parameters = True  # the branch of the features to lift waits for the detector
max_epochs = 12
