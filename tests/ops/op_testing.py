"""Shared by the operator tests: skip mark, awkward memory layouts, a run without the compiled operators."""

import os
import subprocess
import sys

import pytest
import torch
from occforge.ops import has_extension

needs_extension = pytest.mark.skipif(not has_extension(), reason='the compiled operators are not built')

OPCHECK_TESTS = ('test_schema', 'test_autograd_registration', 'test_faketensor', 'test_aot_dispatch_dynamic')


def awkward(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, non-contiguous (reversed dimension order in memory) and at a non-zero storage offset."""
    order = list(range(tensor.ndim))[::-1]
    stretched = torch.zeros([size * 2 + 1 for size in (tensor.shape[i] for i in order)], dtype=tensor.dtype)
    view = stretched[tuple(slice(1, None, 2) for _ in order)].permute(order)
    assert view.shape == tensor.shape
    view.copy_(tensor)
    return view.requires_grad_() if tensor.requires_grad else view


def check_fake(name: str, *arguments) -> None:
    """The fake kernel gives the shapes, types and strides of what the operator gives."""
    if has_extension() and all(_can_be_copied(x) for x in arguments if isinstance(x, torch.Tensor)):
        torch.library.opcheck(getattr(torch.ops.occforge, name).default, arguments, test_utils='test_faketensor')


def _can_be_copied(tensor: torch.Tensor) -> bool:
    """opcheck copies as many elements as the strides reach and some more, a negative number for a few empty shapes."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) > -32


def run_python(code: str, **environment) -> str:
    """Run Python code in a process of its own; its standard output."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), **environment)
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_without_extension(code: str) -> str:
    """The same where the compiled operators are hidden."""
    return run_python(code, OCCFORGE_DISABLE_EXT='1')
