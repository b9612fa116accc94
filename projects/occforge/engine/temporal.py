"""What models remember of earlier frames, kept beside each checkpoint.

A module that remembers has two methods::

    def temporal_state(self): ...            # plain data (numbers, text, tensors, containers); None: nothing to keep
    def load_temporal_state(self, state): ...

Each process writes what its modules remember of its own frames into ``<checkpoint>.temporal_rankR`` and reads that file
when as many processes resume the checkpoint, so a training that is killed in the middle of its sequences goes on as if
it had not been. The files are apart from the checkpoint because only training needs them, and nobody else's: at full
size one is gigabytes.
"""

import os
from pathlib import Path

from mmengine import fileio
from mmengine.runner import CheckpointLoader
from mmengine.utils import apply_to
from torch import nn

from ..errors import DataError
from .dist import rank_and_world

_SUFFIX = '.temporal_rank'


def temporal_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, of those that remember earlier frames."""
    return {name: module for name, module in model.named_modules() if hasattr(module, 'temporal_state')}


def temporal_content(model: nn.Module, iteration: int) -> dict | None:
    """Content of this process's file after ``iteration`` iterations; None: nothing is remembered or to be kept."""
    states = {name: module.temporal_state() for name, module in temporal_modules(model).items()}
    states = {name: state for name, state in states.items() if state is not None}
    if not states:
        return None
    states = apply_to(states, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())
    return dict(iter=iteration, world_size=rank_and_world()[1], states=states)


def temporal_path(checkpoint: str) -> str:
    """This process's file beside ``checkpoint``."""
    return f'{checkpoint}{_SUFFIX}{rank_and_world()[0]}'


def remove_orphans(folder: str | os.PathLike) -> None:
    """Remove this process's files in ``folder`` whose checkpoint is gone."""
    suffix = temporal_path('')
    for path in Path(folder).glob(f'*{suffix}'):
        if not path.with_name(path.name.removesuffix(suffix)).exists():
            path.unlink(missing_ok=True)


def load_temporal(model: nn.Module, checkpoint: str, iteration: int) -> str | None:
    """Give the modules what they remembered when ``checkpoint`` was written after ``iteration`` iterations.

    Returns:
        why they could not have it and remember nothing now; None: they have it, or nothing is to be kept.
    """
    wanted = {name: module for name, module in temporal_modules(model).items() if module.temporal_state() is not None}
    if not wanted:
        return None
    path, world = temporal_path(checkpoint), rank_and_world()[1]
    try:
        if not fileio.exists(path):
            return f'{path} does not exist'
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger=None)
    except (DataError, OSError, NotImplementedError) as error:
        return str(error) or f'{path} cannot be read'
    if content.get('world_size') != world:
        return f'{path} is of {content.get("world_size")} processes, there are {world}'
    if content.get('iter') != iteration:
        return f'{path} is of iteration {content.get("iter")}, the checkpoint of {iteration}'
    if set(content['states']) != set(wanted):
        return f'{path} is of other modules than this model has'
    for name, module in wanted.items():
        module.load_temporal_state(content['states'][name])
    return None
