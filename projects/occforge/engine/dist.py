"""Several processes or one, with or without a GPU, without a process group unless there is more than one process.

Everything here is correct in a single process, where nothing is communicated.
"""

import datetime
import os
import re
import subprocess
import sys

import torch
from torch import distributed as torch_dist

from ..errors import ConfigError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def is_distributed() -> bool:
    """Whether a process group exists (also one of a single process)."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without a process group."""
    return (torch_dist.get_rank(), torch_dist.get_world_size()) if is_distributed() else (0, 1)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, not differentiable. Returns a new tensor; every process must call it."""
    total = tensor.detach().clone()
    if rank_and_world()[1] > 1:
        torch_dist.all_reduce(total)
    return total


def reduce_mean_count(count: torch.Tensor | float | int, minimum: float = 1.0) -> torch.Tensor:
    """Loss normaliser that makes several processes train as one would: the mean of ``count`` over the processes.

    Each process divides the **sum** of its own loss terms by this number. DistributedDataParallel averages gradients
    over the processes, so the result is that of one process with the union of the batches: the sum of all terms
    divided by their total number. In a single process it is the count itself.

    Args:
        count: number of terms (valid voxels, positive boxes, ...) in this process's batch; a scalar.
        minimum: lower bound of the total number of terms, so that nothing divides by zero; shared by the processes.

    Returns:
        Scalar tensor, at least float32, on the device of ``count``, without gradient. Every process must call it
        equally often.
    """
    count = torch.as_tensor(count)
    dtype = count.dtype if count.dtype == torch.float64 else torch.float32
    world = rank_and_world()[1]
    return all_reduce_sum(count.to(dtype)).clamp(min=minimum) / world


def reduce_mean_values(values: dict) -> dict:
    """Mean over the processes of every scalar of ``values``, with one communication; other values stay as they are.

    Every process must hold the same keys.
    """
    world = rank_and_world()[1]
    if world == 1:
        return values
    names = sorted(
        name
        for name, value in values.items()
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
    )
    if not names:
        return values
    device = next((values[name].device for name in names if isinstance(values[name], torch.Tensor)), None)
    if device is None:
        device = communication_device()
    packed = torch.stack(
        [torch.as_tensor(values[name], dtype=torch.float64).detach().reshape(()).to(device) for name in names]
    )
    torch_dist.all_reduce(packed)
    packed /= world
    return {**values, **{name: packed[i].to(torch.float32) for i, name in enumerate(names)}}


def communication_device() -> torch.device:
    """Where tensors have to lie for the process group's backend."""
    if is_distributed() and 'nccl' in str(torch_dist.get_backend()):
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def detect_launcher(launcher: str | None, environment=os.environ) -> str:
    """Name of the launcher of this process.

    An explicit name wins. Otherwise torchrun, and mpirun (which is what ``torchpack dist-run`` calls) with several
    processes, are recognised by their environment, because without that N processes would each believe to be alone and
    train N separate models into one folder. A stray ``WORLD_SIZE=1`` is not a launcher.
    """
    if launcher is not None:
        if launcher not in LAUNCHERS:
            raise ConfigError(f'launcher: {launcher!r} is not one of {", ".join(LAUNCHERS)}')
        return launcher
    if {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} <= set(environment) and (
        'TORCHELASTIC_RUN_ID' in environment or int(environment['WORLD_SIZE']) > 1
    ):
        return 'pytorch'
    if int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
        return 'mpi'
    return 'none'


def init_distributed(launcher: str, backend: str | None = None, timeout: float = 1800.0, **group_args) -> str:
    """Make the process group for ``launcher`` and choose this process's GPU. Returns the backend.

    Args:
        launcher: 'pytorch' (torchrun), 'slurm' or 'mpi'.
        backend: 'nccl' or 'gloo'; None: nccl where torch sees a GPU, else gloo. nccl without a GPU becomes gloo.
        timeout: seconds after which a collective that others do not join is an error.
        **group_args: passed to ``torch.distributed.init_process_group``.

    Raises:
        ConfigError: for a missing environment variable, or more processes on this node than GPUs.
    """
    if launcher == 'slurm':
        _environment_from_slurm(os.environ)
    elif launcher == 'mpi':
        _environment_from_mpi(os.environ)
    missing = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} - set(os.environ)
    if missing:
        raise ConfigError(
            f'launcher {launcher}: the environment lacks {", ".join(sorted(missing))}. Start with '
            'tools/dist_train.sh CONFIG GPUS or torchrun --nproc_per_node=GPUS tools/train.py CONFIG'
        )
    local_rank = int(os.environ.setdefault('LOCAL_RANK', '0'))
    has_gpu = torch.cuda.is_available()
    if has_gpu and backend != 'gloo':
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f'launcher {launcher}: process {local_rank} of this node has no GPU, torch sees '
                f'{torch.cuda.device_count()}. Start as many processes as there are GPUs'
            )
        torch.cuda.set_device(local_rank)
    elif has_gpu:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    if not has_gpu and os.environ['RANK'] == '0':
        sys.stderr.write(f'note: torch sees no GPU: {os.environ["WORLD_SIZE"]} processes run on the CPU (gloo)\n')
    backend = (backend or 'nccl') if has_gpu else 'gloo'
    torch_dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout), **group_args)
    return backend


def _environment_from_slurm(environment) -> None:
    """torch's variables from those that srun sets; the first node of the list is the master."""
    missing = {'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'} - set(environment)
    if missing:
        raise ConfigError(
            f'launcher slurm: the environment lacks {", ".join(sorted(missing))}: start with srun or '
            'tools/slurm_train.sh, or use another launcher'
        )
    environment['RANK'] = environment['SLURM_PROCID']
    environment['WORLD_SIZE'] = environment['SLURM_NTASKS']
    environment['LOCAL_RANK'] = environment.get('SLURM_LOCALID', '0')
    environment.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in environment:
        environment['MASTER_ADDR'] = first_slurm_node(environment['SLURM_NODELIST'])


def first_slurm_node(nodes: str) -> str:
    """First host of a Slurm node list such as ``gpu[03-05,9],login1``, by scontrol or, where it is absent, by hand."""
    try:
        result = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
        return result.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        match = re.match(r'([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?', nodes)
        return ''.join(part or '' for part in match.groups())


def _environment_from_mpi(environment) -> None:
    missing = {'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'} - set(environment)
    if missing:
        raise ConfigError(f'launcher mpi: the environment lacks {", ".join(sorted(missing))}: start with mpirun')
    environment['RANK'] = environment['OMPI_COMM_WORLD_RANK']
    environment['WORLD_SIZE'] = environment['OMPI_COMM_WORLD_SIZE']
    environment['LOCAL_RANK'] = environment['OMPI_COMM_WORLD_LOCAL_RANK']
    host, _, port = environment.get('MASTER_HOST', '').partition(':')  # torchpack's
    environment.setdefault('MASTER_PORT', port or '29500')
    environment.setdefault('MASTER_ADDR', host or '127.0.0.1')
