"""Runs the toy training in a forked process: nothing is imported again, and it may be killed."""

import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import toy  # noqa: F401
from occforge.engine import OccRunner, load_config, read_checkpoint
from ranks import free_port

for module in ('datasets', 'engine', 'models'):  # once here and not in every forked process
    importlib.import_module(f'mmdet3d.{module}')

CONFIG = Path(__file__).parents[1] / 'data' / 'toy_config.py'


def train(work_dir, overrides=(), launcher='none', fields=None):
    """Train in this process."""
    torch.set_num_threads(1)
    cfg = load_config(CONFIG, list(overrides))
    for name, value in (fields or {}).items():
        cfg[name] = value
    cfg.work_dir, cfg.launcher = str(work_dir), launcher
    OccRunner.from_cfg(cfg).train()


def start(work_dir, overrides=(), rank=None, world=1, port=None, fields=None):
    """Fork a process that trains; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        output = os.open(Path(work_dir) / f'output_{rank or 0}.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(1, 'w', buffering=1)  # pytest has put its own there
        if rank is not None:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
            )  # fmt: skip
        train(work_dir, overrides, 'pytorch' if rank is not None else 'none', fields)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(work_dir, overrides=(), world=None, **fields):
    """Train to the end in one forked process, or ``world`` of them; the largest exit code."""
    if world is None:
        return finish(start(work_dir, overrides, fields=fields))
    port = free_port()
    started = [start(work_dir, overrides, rank, world, port, fields) for rank in range(world)]
    return max(finish(pid) for pid in started)


def kill_after(pid, seconds):
    """SIGKILL after a while; whether the process was still running."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def weights(work_dir, name='epoch_3.pth'):
    return read_checkpoint(Path(work_dir) / name)


def output(work_dir, rank=0):
    """What a process printed."""
    return (Path(work_dir) / f'output_{rank}.txt').read_text()


def losses(work_dir):
    """Logged training losses by iteration, from the JSON lines of every run in the folder."""
    found = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                found[row['step']] = row['loss']
    return found


def assert_equal_training(a, b):
    """Bit for bit: weights, buffers and optimizer state of two checkpoints."""
    for key in a['state_dict']:
        assert torch.equal(a['state_dict'][key], b['state_dict'][key]), key
    assert a['meta']['iter'] == b['meta']['iter'] and a['meta']['epoch'] == b['meta']['epoch']
    for index, state in a['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b['optimizer']['state'][index][name])), name
    if 'ema_state_dict' in a:
        for key, value in a['ema_state_dict'].items():
            assert torch.equal(value, b['ema_state_dict'][key]), key


def copy_folder(source, target):
    shutil.copytree(source, target)
    pointer = Path(target) / 'last_checkpoint'
    pointer.write_text(str(Path(target) / Path(pointer.read_text()).name))
