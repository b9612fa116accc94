from .syncbn_control_hook import SyncbnControlHook

__all__ = ['SyncbnControlHook']
