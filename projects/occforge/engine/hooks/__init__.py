from .output_folder import OutputFolderHook
from .sample_seed import SampleSeedHook
from .syncbn_control_hook import SyncbnControlHook

__all__ = ['OutputFolderHook', 'SampleSeedHook', 'SyncbnControlHook']
