"""Memory stays flat, and where it does not, that is said."""

import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from occforge.engine.hooks import MemorySlopeHook
from occforge.engine.hooks.memory_slope_hook import slope
from training import output, run

linux = pytest.mark.skipif(sys.platform != 'linux', reason='memory as the kernel reports it on Linux')


def test_the_slope_and_its_error():
    rise, error = slope([0, 1, 2, 3], [5, 7, 9, 11])
    assert rise == pytest.approx(2) and error == pytest.approx(0, abs=1e-12)
    rise, error = slope([0, 1, 2, 3], [1, -1, 1, -1])
    # residuals 0.4, -1.2, 1.2, -0.4 about the line 0.6 - 0.4 x
    assert rise == pytest.approx(-0.4) and error == pytest.approx((3.2 / 2 / 5) ** 0.5)


class Follow:
    """Enough of a runner to follow a made-up course of memory; ``phase``: the iteration that begins another phase."""

    def __init__(self, course, phase=None):
        self.lines = []
        self.iter = 0
        self.message_hub = MessageHub('memory')
        self.logger = SimpleNamespace(warning=self.lines.append)
        hook = MemorySlopeHook(interval=10, window=20, warm_up=100)
        hook.measure = lambda: dict(host=course(self.iter))
        hook.before_train(self)
        for self.iter in range(1000):
            if self.iter == phase:
                hook.restart(self)
            hook.after_train_iter(self, self.iter)


def test_growth_is_warned_of_and_a_level_is_not():
    grown = Follow(lambda step: 1000 + 0.2 * step)
    assert len(grown.lines) == 1 and 'memory grows: host' in grown.lines[0] and ' 200 +- 0 MiB' in grown.lines[0]
    assert not Follow(lambda step: 1000 + 300 * (step > 90) + step % 7).lines  # what a warm-up fills
    assert Follow(lambda step: 1000 + 300 * (step > 500)).lines  # nobody said that another phase begins
    assert not Follow(lambda step: 1000 + 300 * (step > 500), phase=500).lines
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
    assert grown_by('render') < 32


@linux
def test_that_test_sees_a_cache_keyed_by_the_number_of_rays():
    """Ids of rays and steps kept for each shape, as a NeRF head had them, which filled its users' 64 GB."""
    assert grown_by('cache') > 64


def grown_by(kind):
    """MiB, in a process of its own (see there)."""
    command = [sys.executable, str(Path(__file__).with_name('ray_memory.py')), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


_FREED = """
import resource, torch
from occforge.engine.memory import keep_freed_memory
print(keep_freed_memory())
faults = []
for _ in range(6):
    torch.ones(2**24)  # 64 MiB, which are 2^14 pages
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[2])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='an option of glibc')
@pytest.mark.parametrize('variable', [None, 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES'])
def test_freed_memory_serves_the_next_tensor_unless_the_user_has_set_something(variable):
    value = dict(MALLOC_TRIM_THRESHOLD_='131072', GLIBC_TUNABLES='glibc.malloc.trim_threshold=131072').get(variable)
    names = {'GLIBC_TUNABLES', 'THP_MEM_ALLOC_ENABLE'}
    environment = {key: each for key, each in os.environ.items() if key not in names and not key.startswith('MALLOC_')}
    environment |= {variable: value} if variable else {}
    shown = subprocess.run(
        [sys.executable, '-c', _FREED], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert shown[0] == str(variable is None)
    assert int(shown[1]) < 1000 if variable is None else int(shown[1]) > 5000
