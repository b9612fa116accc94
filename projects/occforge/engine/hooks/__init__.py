from .checkpoint_hook import OccCheckpointHook
from .ema_hook import OccEMAHook
from .finite_loss_hook import FiniteLossHook, NonFiniteError
from .memory_slope_hook import MemorySlopeHook
from .metrics_csv_hook import MetricsCsvHook
from .output_folder import OutputFolderHook
from .partial_load_hook import PartialLoadHook
from .progressive_unfreeze_hook import ProgressiveUnfreezeHook
from .result_files_hook import ResultFilesHook
from .sample_seed import SampleSeedHook
from .syncbn_control_hook import SyncbnControlHook

__all__ = [
    'FiniteLossHook',
    'MemorySlopeHook',
    'MetricsCsvHook',
    'NonFiniteError',
    'OccCheckpointHook',
    'OccEMAHook',
    'OutputFolderHook',
    'PartialLoadHook',
    'ProgressiveUnfreezeHook',
    'ResultFilesHook',
    'SampleSeedHook',
    'SyncbnControlHook',
]
