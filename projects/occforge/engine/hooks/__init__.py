from .checkpoint_hook import OccCheckpointHook
from .metrics_csv_hook import MetricsCsvHook
from .output_folder import OutputFolderHook
from .partial_load_hook import PartialLoadHook
from .result_files_hook import ResultFilesHook
from .sample_seed import SampleSeedHook
from .syncbn_control_hook import SyncbnControlHook

__all__ = [
    'MetricsCsvHook',
    'OccCheckpointHook',
    'OutputFolderHook',
    'PartialLoadHook',
    'ResultFilesHook',
    'SampleSeedHook',
    'SyncbnControlHook',
]
