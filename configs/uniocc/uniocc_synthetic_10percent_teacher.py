# Depth-aware teacher-student on top of uniocc_synthetic_10percent_rendering.py: where there are no 3D labels, the
# student learns besides from the average of its own weights, lifted to the LiDAR's depth.
_base_ = './uniocc_synthetic_10percent_rendering.py'

detector = _base_.model
model = dict(
    _delete_=True,
    type='UniOccTeacherStudent',
    detector=detector,
    weight_unlabelled=0.3,  # of 432 steps the teacher has too little to say before the second half
    ramp_iters=430,
    use_mask=True,
    visibility='rays',
    soft=True,
    geo_threshold=0.0,
    sem_threshold=0.7,
)
# the teacher starts as the student's copy
load_from = dict(
    path=None,
    key_map=[
        'img_backbone -> student.img_backbone',
        'img_neck -> student.img_neck',
        'depth_net -> student.img_view_transformer.depth_net',
    ],
)
custom_hooks = [dict(type='MeanTeacherHook', momentum=0.98, warm_up=20)]
linked_fields = [
    dict(name='use_mask', value=True, to='model.detector.use_mask'),
    dict(name='aux_frames', value=_base_.aux_frames, to='train_dataloader.dataset.aux_frames'),
]
