"""Activation checkpointing around batch normalisation."""

import contextlib
from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import checkpoint as torch_checkpoint


def checkpoint(module: nn.Module, function: Callable, *args):
    """``function(*args)``, computed again in the backward pass instead of kept.

    torch's own ``checkpoint`` would let the second computation update the running statistics of batch normalisation
    once more; here a step leaves the same buffers as without checkpointing.

    Args:
        module: holds the batch normalisations that ``function`` may run.
        function: what to compute; random numbers repeat.
        *args: its tensors.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    return torch_checkpoint.checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _kept_statistics(norms))
    )


@contextlib.contextmanager
def _kept_statistics(norms):
    """Within, batch normalisations leave their running statistics and counters as they are."""
    before = [
        (norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)
