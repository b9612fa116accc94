# What every config shares: registration, hooks, logging, processes. mmengine's fields; ours are named Occ*.
custom_imports = dict(imports=['occforge'], allow_failed_imports=False)
default_scope = 'mmdet3d'
runner_type = 'OccRunner'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # written atomically; interval in epochs
    checkpoint=dict(type='OccCheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # augmentation depends on seed, epoch and sample alone; skipped samples are reported
    sample_seed=dict(type='SampleSeedHook'),
    # metrics write results.json into the work dir
    output_folder=dict(type='OutputFolderHook'),
    # a loss or gradient that is not finite is traced to its module and samples before it reaches the weights
    finite_loss=dict(type='FiniteLossHook', action='stop'),
    # warns where memory grows
    memory_slope=dict(type='MemorySlopeHook'),
    # metrics.csv in the work dir
    metrics_csv=dict(type='MetricsCsvHook', interval=50),
)
log_processor = dict(type='OccLogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
# scalars as JSON lines; no window
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # backend None: nccl with GPUs, gloo without. timeout in seconds: how long a process waits for the others
    dist_cfg=dict(backend=None, timeout=1800),
)
# one seed for weights, shuffling and augmentation; deterministic=True also asks cuDNN for deterministic kernels
randomness = dict(seed=0, deterministic=False)

resume = False
# batch normalisation over all processes (SyncbnControlHook does the same from a given epoch on)
sync_bn = False
find_unused_parameters = False
# memory format of convolution weights: True is faster for the small models on a CPU, and on GPUs with --amp
channels_last = False
