from .checkpoint_hook import OccCheckpointHook
from .metrics_csv_hook import MetricsCsvHook
from .output_folder import OutputFolderHook
from .sample_seed import SampleSeedHook
from .syncbn_control_hook import SyncbnControlHook

__all__ = ['MetricsCsvHook', 'OccCheckpointHook', 'OutputFolderHook', 'SampleSeedHook', 'SyncbnControlHook']
