"""Memory stays flat, and where it does not, that is said."""

import functools
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from occforge.engine.hooks import MemorySlopeHook
from occforge.engine.hooks.memory_slope_hook import slope
from occforge.engine.memory import resident_memory
from occforge.ops import render_rays
from training import output, run

linux = pytest.mark.skipif(sys.platform != 'linux', reason='memory as the kernel reports it on Linux')


def test_the_slope_and_its_error():
    rise, error = slope([0, 1, 2, 3], [5, 7, 9, 11])
    assert rise == pytest.approx(2) and error == pytest.approx(0, abs=1e-12)
    rise, error = slope([0, 1, 2, 3], [1, -1, 1, -1])
    # residuals 0.4, -1.2, 1.2, -0.4 about the line 0.6 - 0.4 x
    assert rise == pytest.approx(-0.4) and error == pytest.approx((3.2 / 2 / 5) ** 0.5)


class Follow:
    """Enough of a runner to follow a made-up course of memory."""

    def __init__(self, course):
        self.lines = []
        self.iter = 0
        self.message_hub = MessageHub('memory')
        self.logger = SimpleNamespace(warning=self.lines.append)
        hook = MemorySlopeHook(interval=10, window=20, warm_up=100)
        hook.measure = lambda: dict(host=course(self.iter))
        hook.before_train(self)
        for self.iter in range(1000):
            hook.after_train_iter(self, self.iter)


def test_growth_is_warned_of_and_a_level_is_not():
    grown = Follow(lambda step: 1000 + 0.2 * step)
    assert len(grown.lines) == 1 and 'memory grows: host' in grown.lines[0] and ' 200 +- 0 MiB' in grown.lines[0]
    assert not Follow(lambda step: 1000 + 300 * (step > 90) + step % 7).lines  # what a warm-up fills
    assert not Follow(lambda step: 1000 + 0.02 * step + step % 7).lines  # 20 MiB per 1000 iterations
    assert not Follow(lambda step: 1000 + 300 * random.Random(step).random()).lines  # noise


def test_the_slopes_are_in_the_log(tmp_path):
    hook = dict(type='MemorySlopeHook', interval=1, window=8, warm_up=2)
    overrides = ['default_hooks.logger.interval=6', 'default_hooks.metrics_csv.interval=6']
    assert run(tmp_path, overrides, custom_hooks=[hook]) == 0, output(tmp_path)
    assert 'host_memory_slope: ' in output(tmp_path)
    assert 'process_memory_slope' in (tmp_path / 'metrics.csv').read_text()


@linux
def test_rendering_ever_new_numbers_of_rays_keeps_the_memory():
    """500 training steps of the renderer, each with another number of rays: less than 32 MiB."""
    assert grown_by(render_step) < 32


@linux
def test_that_test_sees_a_cache_keyed_by_the_number_of_rays():
    """Ids of rays and steps kept for each shape, as a NeRF head had them, which filled its users' 64 GB."""

    @functools.lru_cache(maxsize=128)
    def ids(rays, steps):
        return torch.arange(rays).repeat_interleave(steps), torch.arange(steps).repeat(rays)

    def leak(rays, _grid):
        ids(rays, 64)

    assert grown_by(leak) > 64


def render_step(rays, grid):
    density, semantics, generator = grid
    origins = 8 * torch.rand(rays, 3, generator=generator)
    directions = torch.randn(rays, 3, generator=generator)
    result = render_rays(density, semantics, origins, directions, (0, 0, 0), (0.5, 0.5, 0.5), step=0.5)
    (result.depth.sum() + result.semantics.sum()).backward()
    density.grad = semantics.grad = None


def grown_by(step, steps=500):
    generator = torch.Generator().manual_seed(0)
    density = torch.randn(1, 16, 16, 16, generator=generator).requires_grad_()
    semantics = torch.randn(1, 16, 16, 16, 4, generator=generator).requires_grad_()
    counts = (torch.randperm(2000, generator=generator)[: steps + 20] + 200).tolist()
    for count in counts[:20]:
        step(count, (density, semantics, generator))
    before = resident_memory()
    for count in counts[20:]:
        step(count, (density, semantics, generator))
    return resident_memory() - before
