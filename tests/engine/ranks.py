"""Runs a function in several forked processes with a gloo group; what it returns comes back by rank."""

import os
import socket

import torch
from occforge.engine import read_checkpoint
from torch import distributed as torch_dist
from torch import multiprocessing


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def _run(rank, function, world, port, folder, args):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch_dist.init_process_group('gloo')
    try:
        torch.save(function(rank, world, *args), os.path.join(folder, f'rank{rank}.pt'))
    finally:
        torch_dist.destroy_process_group()


def run_ranks(function, world, folder, *args):
    multiprocessing.start_processes(
        _run, (function, world, free_port(), str(folder), args), nprocs=world, start_method='fork'
    )
    return [read_checkpoint(os.path.join(folder, f'rank{rank}.pt')) for rank in range(world)]
