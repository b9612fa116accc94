"""Checkpoints: read as data, never as code; written atomically; a corrupt newest one does not end a training.

mmengine stores log buffers and numpy scalars beside the weights, which ``torch.load(weights_only=True)`` refuses. The
loader here allows exactly these (log buffers with their four statistics, numpy arrays and scalars of plain numbers)
and nothing else, and is registered with mmengine's ``CheckpointLoader``, so ``resume``, ``load_from`` and
``init_cfg=dict(type='Pretrained', ...)`` all go through it.
"""

import ast
import hashlib
import io
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import nn

from ..errors import ConfigError, DataError
from ..fileio import atomic_write
from .load_report import LoadReport

if hasattr(np, '_core'):  # numpy 2
    from numpy._core import multiarray
else:
    from numpy.core import multiarray


def _statistic(owner, name):
    """Stands in for ``getattr`` while a checkpoint is read: a log buffer's statistics and nothing else."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'GLOBAL builtins.getattr of {owner!r}, {name!r} was not allowed')


def _allowed_globals() -> list:
    allowed = [HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype]
    allowed += {type(np.dtype(kind)) for kind in ('f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u1', 'u4', 'u8', '?')}
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # as numpy 1 and numpy 2 write them
        allowed += [(multiarray._reconstruct, f'{module}._reconstruct'), (multiarray.scalar, f'{module}.scalar')]
    return allowed


_trusted: set[str] = set()  # SHA-256 of files, or '*'


def trust_pickles(sha256: str = '*') -> None:
    """From now on in this process, checkpoints that want something executed are loaded all the same.

    Each is named with its SHA-256 in a warning. It runs whatever its author wrote, with the rights of this process.

    Args:
        sha256: of the only file that is trusted; '*': any.
    """
    _trusted.add(sha256.lower())


def fingerprint_of(path: str | os.PathLike) -> dict:
    """Size and SHA-256 of a local file; nothing of a URL."""
    if not os.path.isfile(path):
        return {}
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return dict(bytes=os.path.getsize(path), sha256=digest.hexdigest())


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> dict:
    """Load a checkpoint file as data.

    Args:
        path: local file, in torch's zip or legacy format.
        map_location: as in ``torch.load``.

    Raises:
        DataError: the file is absent, empty, truncated, no checkpoint at all, or wants something executed; the
            message names the file and what it wanted.
    """
    path = os.path.expanduser(os.fspath(path))
    if not os.path.isfile(path):
        raise DataError(f'{path}: no such checkpoint file')
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r'GLOBAL ([\w.]+)', str(error))
        if wanted:
            digest = fingerprint_of(path)['sha256']
            if not _trusted & {'*', digest}:
                raise DataError(
                    f'{path}: refused, because loading it would run {wanted.group(1)}: a checkpoint may hold tensors, '
                    'numbers, text, containers of them and log buffers. If you trust its author: --allow-unsafe-pickle '
                    f'{digest}'
                ) from error
            print_log(
                f'{path} (SHA-256 {digest}) wants to run {wanted.group(1)} and more: it is loaded as a program, as '
                '--allow-unsafe-pickle says',
                logger='current',
                level=logging.WARNING,
            )
            checkpoint = torch.load(path, map_location=map_location, weights_only=False)
            return _as_weights(checkpoint, path)
        raise DataError(f'{path}: not a readable checkpoint: {_first_line(error)}') from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, OSError) as error:
        # what torch raises for damaged files depends on where the damage is
        if isinstance(error, OSError) and error.filename is not None:
            raise
        size = os.path.getsize(path)
        raise DataError(f'{path}: damaged or not a checkpoint ({size} bytes): {_first_line(error)}') from error
    return _as_weights(checkpoint, path)


def _as_weights(checkpoint: Any, path: str) -> dict:
    if not isinstance(checkpoint, dict):
        raise DataError(f'{path}: a dict with weights is expected, found {type(checkpoint).__name__}')
    return checkpoint


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Write a checkpoint so that ``path`` always holds a whole one, the old or the new."""
    with atomic_write(path) as file:
        torch.save(checkpoint, file)


def check_loadable(checkpoint: dict) -> None:
    """Raise ``DataError`` if what surrounds the weights could not be read back by :func:`read_checkpoint`."""
    tensors = ('state_dict', 'ema_state_dict', 'optimizer')
    rest = {key: value for key, value in checkpoint.items() if key not in tensors}
    buffer = io.BytesIO()
    try:
        torch.save(rest, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals(_allowed_globals()):
            torch.load(buffer, weights_only=True)
    except Exception as error:
        wanted = re.search(r'GLOBAL ([\w.]+)', str(error))
        raise DataError(
            f'this training cannot be saved so that it can be loaded again: its metadata holds '
            f'{wanted.group(1) if wanted else _first_line(error)} (dataset metainfo and logged values may be numbers, '
            'text, tensors, numpy arrays and containers of them)'
        ) from error


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_safe_local(filename, map_location=None):
    return read_checkpoint(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_safe_http(filename, map_location=None):
    """Download into torch's cache (first process of each node), then read as data."""
    from mmengine.dist import get_dist_info

    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    target = folder / filename.split('?')[0].rsplit('/', 1)[-1]
    if get_dist_info()[0] == 0 or os.environ.get('LOCAL_RANK') == '0':
        if not target.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(target), progress=False)
    if get_dist_info()[1] > 1:
        torch.distributed.barrier()
    return read_checkpoint(target, map_location)


def latest_checkpoint(folder: str | os.PathLike, log: Callable[[str], None]) -> str | None:
    """Newest checkpoint of a work dir that can be read; None where there is none at all.

    The file that ``last_checkpoint`` names comes first, then ``epoch_*.pth`` and ``iter_*.pth`` from new to old. Each
    one that cannot be read is reported through ``log``.

    Raises:
        DataError: there are checkpoints and none can be read.
    """
    folder = Path(folder)
    candidates = []
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text(encoding='utf-8').strip())
        for path in (folder / named.name, named):  # the folder may have been moved or copied since
            if path.is_file():
                candidates.append(path)
                break
        else:
            log(f'{pointer} names {named}, which does not exist')
    numbered = [path for pattern in ('epoch_*.pth', 'iter_*.pth') for path in folder.glob(pattern)]
    for path in sorted(numbered, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if not any(path.samefile(other) for other in candidates):
            candidates.append(path)
    for path in candidates:
        try:
            read_checkpoint(path)
        except DataError as error:
            log(f'{error}. The one before it is tried')
        else:
            return str(path)
    if candidates:
        raise DataError(f'{folder}: none of {len(candidates)} checkpoints can be read')
    return None


def model_type_of(checkpoint: dict) -> str | None:
    """Class name of the checkpoint's model as its config gave it, or None. The config text is parsed, not run."""
    if 'model_type' in checkpoint.get('occforge', {}):
        return checkpoint['occforge']['model_type']
    meta = checkpoint.get('meta') or {}
    text = meta.get('cfg') or meta.get('config')
    if not isinstance(text, str):
        return None
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return None
    for node in body:
        if isinstance(node, ast.Assign) and any(getattr(target, 'id', '') == 'model' for target in node.targets):
            value = node.value
            if isinstance(value, ast.Call):
                pairs = [(keyword.arg, keyword.value) for keyword in value.keywords]
            elif isinstance(value, ast.Dict):
                pairs = [(getattr(key, 'value', None), item) for key, item in zip(value.keys, value.values)]
            else:
                continue
            for name, item in pairs:
                if name == 'type' and isinstance(item, ast.Constant):
                    return str(item.value)
    return None


def state_dict_of(checkpoint: dict) -> OrderedDict:
    """The weights in a checkpoint, without DistributedDataParallel's ``module.`` prefix.

    Raises:
        DataError: there is no mapping from names to tensors in it.
    """
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise DataError(f'the checkpoint holds no weights: its keys are {", ".join(map(str, list(checkpoint)[:8]))}')
    metadata = getattr(state, '_metadata', None)
    state = OrderedDict((name.removeprefix('module.'), value) for name, value in state.items())
    if metadata is not None:
        state._metadata = metadata
    return state


_COUNTER = 'num_batches_tracked'
_SIZE_MISMATCH = re.compile(r'size mismatch for ([^:]+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)')


def load_weights(model: nn.Module, state: dict, source: str) -> LoadReport:
    """Copy what fits from ``state`` into ``model`` and report the rest; modules' own load hooks run.

    Raises:
        ConfigError: nothing fits at all.
    """
    report = LoadReport(source, parameters={name for name, _ in model.named_parameters(remove_duplicate=False)})
    metadata = getattr(state, '_metadata', None) or {}
    state = OrderedDict((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))
    given = set(state)
    errors: list[str] = []
    unexpected: list[str] = []

    def load(module, prefix=''):
        module._load_from_state_dict(
            state, prefix, metadata.get(prefix[:-1], {}), True, report.missing, unexpected, errors
        )
        for name, child in module._modules.items():
            if child is not None:
                load(child, f'{prefix}{name}.')

    with torch.no_grad():
        load(model)
    for message in errors:
        match = _SIZE_MISMATCH.search(message)
        if match is None:
            raise DataError(f'{source}: {" ".join(message.split())}')
        shapes = [tuple(int(n) for n in text.split(',') if n.strip()) for text in match.groups()[1:]]
        report.mismatched.append((match.group(1), *shapes))
    ours = model.state_dict()
    both = {**state, **ours}
    report.sizes = {name: value.numel() for name, value in both.items() if isinstance(value, torch.Tensor)}
    apart = {name for name, *_ in report.mismatched} | set(report.missing)
    # layers add batch counters, which files of old torch versions lack, to the state themselves
    state = {name: value for name, value in state.items() if name in given or not name.endswith(_COUNTER)}
    report.loaded = [name for name in ours if name not in apart and name in state]
    report.unexpected = [name for name in state if name not in ours]
    report.missing = [name for name in report.missing if not name.endswith(_COUNTER)]
    if ours and not report.loaded:
        raise ConfigError(
            f'{source}: nothing in it fits the model. Names in the file: {", ".join(list(state)[:3])}; in the model: '
            f'{", ".join(list(ours)[:3])}'
        )
    return report
