"""Training machinery: processes, configs, checkpoints, runner, hooks. Nothing here knows a system."""

from . import hooks
from .amp import OccAmpOptimWrapper, float32_island
from .channels_last import use_channels_last
from .checkpoint import read_checkpoint, trust_pickles, write_checkpoint
from .config import load_config
from .dist import is_distributed, rank_and_world, reduce_mean_count, reduce_mean_values
from .load_report import LoadReport
from .log_processor import OccLogProcessor
from .loops import OccEpochTrainLoop, OccIterTrainLoop
from .muon import MuonAdamW
from .param_groups import OccOptimWrapperConstructor
from .partial_load import LoadSpec, load_partially, parse_load_from
from .runner import OccRunner
from .sync_batch_norm import CrossRankBatchNorm, convert_sync_batchnorm
from .trainable import Trainability

__all__ = [
    'CrossRankBatchNorm',
    'LoadReport',
    'LoadSpec',
    'MuonAdamW',
    'OccAmpOptimWrapper',
    'OccEpochTrainLoop',
    'OccIterTrainLoop',
    'OccLogProcessor',
    'OccOptimWrapperConstructor',
    'OccRunner',
    'Trainability',
    'convert_sync_batchnorm',
    'float32_island',
    'hooks',
    'is_distributed',
    'load_config',
    'load_partially',
    'parse_load_from',
    'rank_and_world',
    'read_checkpoint',
    'reduce_mean_count',
    'reduce_mean_values',
    'trust_pickles',
    'use_channels_last',
    'write_checkpoint',
]
