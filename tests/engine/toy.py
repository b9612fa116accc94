"""A registered model, dataset and metric small enough to train in milliseconds, with every kind of randomness."""

import os
import random
import signal
import time

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from occforge.engine import reduce_mean_count
from occforge.engine.dist import rank_and_world
from torch import nn
from torch.utils.data import Dataset, get_worker_info


@DATASETS.register_module()
class ToyDataset(Dataset):
    """x (4), y (1) by index, plus noise from the process's global generators (``noise``); a worker that reads the
    sample ``deadly`` is killed."""

    def __init__(self, size=24, noise=0.0, deadly=None):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True).tanh()
        self.noise, self.deadly = noise, deadly
        self.metainfo = dict(classes=('a', 'b'), weight=np.float64(1.5))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if index == self.deadly and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = self.noise * (random.random() + np.random.rand() + torch.rand(1).item())  # noqa: NPY002
        return dict(inputs=self.x[index] + noise, data_samples=self.y[index])


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self, width=8, dropout=0.0, ballast=0, fail_rank=None, fail_iter=3, rows=False, delay=0.0):
        super().__init__()
        self.first = nn.Linear(4, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.register_buffer('ballast', torch.zeros(ballast))
        self.fail_rank, self.fail_iter, self.rows, self.delay = fail_rank, fail_iter, rows, delay
        self.count = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if isinstance(inputs, (list, tuple)):
            inputs, data_samples = torch.stack(inputs), torch.stack(data_samples)
        time.sleep(self.delay)
        features = self.head(self.dropout(torch.tanh(self.norm(self.first(inputs)))))
        if mode == 'loss':
            self.count += 1
            if self.fail_rank == int(os.environ.get('RANK', 0)) and self.count >= self.fail_iter:
                raise RuntimeError('a rank fails on purpose')
            error = (features - data_samples).square()
            valid = data_samples > -0.3  # as many terms as the samples happen to have
            return dict(loss_fit=error.mean(), loss_valid=(error * valid).sum() / reduce_mean_count(valid.sum()))
        return [dict(pred=p, target=t) for p, t in zip(features, data_samples)]


@MODELS.register_module()
class OtherToyModel(ToyModel):
    pass


@METRICS.register_module()
class ToyMetric(BaseMetric):
    default_prefix = ''

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def process(self, data_batch, data_samples):
        self.results += [float((s['pred'] - s['target']).square()) for s in data_samples]

    def compute_metrics(self, results):
        torch.rand(3)  # a careless metric: draws from the global generator
        return dict(error=float(np.mean(results)) * self.scale, count=len(results))


@HOOKS.register_module()
class ToyRankStateHook(Hook):
    """Keeps something of its own process in a file beside each checkpoint."""

    def before_write_checkpoint(self, runner, path):
        assert not os.path.exists(path)
        with open(f'{path}.rank{rank_and_world()[0]}', 'w') as file:
            file.write(f'iteration {runner.iter}')

    def after_resume(self, runner, filename):
        with open(f'{filename}.rank{rank_and_world()[0]}') as file:
            print(f'rank state of {file.read()}', flush=True)
