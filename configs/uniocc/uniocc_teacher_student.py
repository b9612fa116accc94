# Depth-aware teacher-student at the size of renderocc-7frame-256x704: labelled key frames and, in each batch as many,
# unlabelled ones (label_fraction, or sweeps: tools/create_sweep_infos.py). The teacher's lift takes measured depths.
_base_ = '../renderocc/renderocc-7frame-256x704.py'

label_fraction = 0.5
detector = _base_.model
model = dict(
    _delete_=True,
    type='UniOccTeacherStudent',
    detector=detector,
    weight_unlabelled=1.0,
    ramp_iters=3500,
    geo_threshold=0.7,
    sem_threshold=0.6,
    use_lidar_depth=True,
)
both_pipeline = _base_.both_pipeline
both_pipeline[4].num_adjacent = 1
train_dataloader = dict(
    batch_sampler=dict(type='LabelMixBatchSampler', labelled=2),
    dataset=dict(pipeline=both_pipeline, label_fraction=label_fraction),
)
custom_hooks = [
    dict(type='SyncbnControlHook', syncbn_start_epoch=0),
    dict(type='MeanTeacherHook', momentum=0.999, warm_up=100),
]
load_from = dict(
    path='ckpts/bevdet-r50-4d-stereo-cbgs.pth',
    to='student',
    take=['student.img_backbone', 'student.img_neck', 'student.img_view_transformer'],
)
linked_fields = [
    dict(name='use_mask', value=True, to='model.detector.use_mask'),
    dict(name='with_cp', value=True, to='model.detector.img_backbone.with_cp'),
    dict(name='label_fraction', value=label_fraction, to='train_dataloader.dataset.label_fraction'),
]
