"""Random number generators of a process as plain data that a checkpoint may hold."""

import random

import numpy as np
import torch


def rng_state() -> dict:
    """State of Python's, numpy's and torch's global generators, and of the current GPU's where there is one."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # the one that transforms of others use
    state = dict(
        python=random.getstate(),
        numpy=(str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    """Set the generators to what :func:`rng_state` returned; a GPU's only where both sides have one."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
