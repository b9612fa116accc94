"""Finds and loads the compiled operators once; without them the plain-torch references run, with one warning."""

import functools
import os
import warnings
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent


@functools.lru_cache(maxsize=1)
def has_extension() -> bool:
    """Whether ``torch.ops.occforge.*`` is available. Loads the library at the first call and never compiles anything.

    ``OCCFORGE_DISABLE_EXT=1`` in the environment hides the library (to run the references).
    """
    if os.environ.get('OCCFORGE_DISABLE_EXT', '0') == '1':
        return False
    libraries = sorted(_PACKAGE.glob('_C*.so'))
    if not libraries:
        warnings.warn(
            'the compiled operators of occforge are not built: the plain-torch references run instead, correct but '
            'slow. Build them with `make setup` or `pip install -e . --no-build-isolation`.',
            stacklevel=2,
        )
        return False
    torch.ops.load_library(str(libraries[0]))
    return True
