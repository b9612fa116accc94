"""Loads the compiled operators, once. What is not there runs as its plain-torch reference, with one warning."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
_BUILD = 'Build them with `make setup` or `pip install -e . --no-build-isolation`.'


class _Library:
    """What was found at ``path``: ``loaded``, if not the reason ``missing``; the usable and the absent operators."""

    def __init__(self):
        self.loaded = False
        self.missing = ''
        self.path = None
        self.operators = {}  # name: device types that it has kernels for
        self.absent = []  # asked for by `compiled` and not defined: the library was built from older sources
        self.warned = False
        if os.environ.get('OCCFORGE_DISABLE_EXT', '0') == '1':
            self.missing = 'are switched off by OCCFORGE_DISABLE_EXT=1'
            return
        libraries = sorted(_PACKAGE.glob('_C*.so'))
        if not libraries:
            self.missing = 'are not built'
            return
        self.path = libraries[0]
        try:
            torch.ops.load_library(str(self.path))
        except OSError as error:  # built against another torch
            self.missing = f'could not be loaded ({str(error).splitlines()[0]})'
            return
        self.loaded = True


# Loading when the package is imported (it compiles nothing and touches no GPU) keeps torch.compile from tracing it.
_library = _Library()


def compiled(*names: str) -> bool:
    """Whether the library defines all these operators; a module declares its own with it before it registers fake
    kernels and gradients for them.

    Operators that need each other, as one and its backward, are declared in one call: ``choose`` knows the ones
    of a complete call only, so that a library built from older sources serves with what it has.
    """
    if not _library.loaded:
        return False
    absent = [name for name in names if not hasattr(torch.ops.occforge, name)]
    if absent:
        _library.absent = sorted({*_library.absent, *absent})
        return False
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f'occforge::{names[0]}', 'CUDA')
    devices = frozenset(('cpu', 'meta', 'cuda') if has_cuda else ('cpu', 'meta'))
    _library.operators.update(dict.fromkeys(names, devices))
    return True


def has_extension() -> bool:
    """Whether the compiled operators (``torch.ops.occforge.*``) are loaded.

    ``OCCFORGE_DISABLE_EXT=1`` in the environment hides them (to run the references).
    """
    return _library.loaded


def absent_operators() -> tuple[str, ...]:
    """Operators that the Python side knows and the loaded library lacks: it was built from older sources."""
    return tuple(_library.absent)


def extension_devices() -> frozenset:
    """Device types the compiled operators have kernels for, e.g. ``{'cpu', 'meta', 'cuda'}``; empty if not loaded."""
    return frozenset().union(*_library.operators.values())


def choose(name: str, device: torch.device, reference: Callable) -> Callable:
    """The compiled operator of this name where the library has it for the device, else its plain-torch reference (with
    the same arguments), with one warning."""
    if device.type in _library.operators.get(name, ()):
        return getattr(torch.ops.occforge, name)
    if not _library.warned:
        _library.warned = True
        warnings.warn(_explanation(name, device), stacklevel=3)
    return reference


def _explanation(name, device):
    which = 'the plain-torch references run instead, correct but slow'
    if not _library.loaded:
        return f'the compiled operators of occforge {_library.missing}: {which}. {_BUILD}'
    if name in _library.operators:
        return f'the compiled operators of occforge were built without support for {device.type}: {which}. {_BUILD}'
    return (
        f'the compiled operators of occforge are out of date: {", ".join(_library.absent)} came later. For these '
        f'{which}. {_BUILD}'
    )


def once_differentiable(backward: str) -> None:
    """Let the registered backward operator raise where it would itself be differentiated (a gradient of a gradient)."""

    def refuse(ctx, *grads):
        raise NotImplementedError(f'occforge::{backward} has no derivative: its operator is differentiable once')

    torch.library.register_autograd(f'occforge::{backward}', refuse)
