# Depth-aware teacher-student: a tenth of the key frames labelled, the others shown without any label but the LiDAR's
# depth. Half of each batch is labelled.
_base_ = './uniocc_synthetic.py'

label_fraction = 0.1
max_epochs = 3  # an epoch shows every unlabelled frame once: nearly as many steps as with all labels, of two frames
detector = _base_.model
model = dict(
    _delete_=True,
    type='UniOccTeacherStudent',
    detector=detector,
    weight_unlabelled=1.0,
    ramp_iters=200,
    soft=True,
    geo_threshold=0.0,
    sem_threshold=0.0,
)
train_dataloader = dict(
    batch_size=2,
    batch_sampler=dict(type='LabelMixBatchSampler', labelled=1),
    dataset=dict(label_fraction=label_fraction),
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
custom_hooks = [dict(type='MeanTeacherHook', momentum=0.99, warm_up=20)]
linked_fields = [
    dict(name='use_mask', value=True, to='model.detector.use_mask'),
    dict(name='aux_frames', value=_base_.aux_frames, to='train_dataloader.dataset.aux_frames'),
]
