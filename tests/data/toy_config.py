# A training of seconds, for the tests of engine and tools; needs tests/engine on PYTHONPATH.
_base_ = ['../../configs/_base_/default_runtime.py']
custom_imports = dict(imports=['occforge', 'toy'], allow_failed_imports=False)

use_rows = False
model = dict(type='ToyModel', width=8, dropout=0.2, rows=use_rows)
linked_fields = [dict(name='use_rows', value=use_rows, to='model.rows')]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ToyDataset', size=24, noise=0.1),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ToyDataset', size=8),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ToyMetric')
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=5.0, norm_type=2)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=3, T_max=3, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=2), metrics_csv=dict(interval=2))
