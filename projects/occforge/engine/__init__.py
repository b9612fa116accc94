"""Training machinery: processes, configs, checkpoints, runner, hooks. Nothing here knows a system."""

from . import hooks
from .config import load_config
from .dist import is_distributed, rank_and_world, reduce_mean_count, reduce_mean_values
from .sync_batch_norm import CrossRankBatchNorm, convert_sync_batchnorm

__all__ = [
    'CrossRankBatchNorm',
    'convert_sync_batchnorm',
    'hooks',
    'is_distributed',
    'load_config',
    'rank_and_world',
    'reduce_mean_count',
    'reduce_mean_values',
]
