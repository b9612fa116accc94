"""The epoch that a dataset's workers see, under both kinds of loop."""

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from occforge.datasets.shared import SharedIntegers
from occforge.engine.hooks import OutputFolderHook, SampleSeedHook
from occforge.engine.runner import OccRunner
from torch.utils.data import ConcatDataset, Dataset


class Clocked(Dataset):
    """Returns (index, epoch, seed) as its worker sees them; like NuScenesOccDataset it keeps both in shared memory."""

    ann_file = 'clocked.pkl'
    skipped = [1]

    def __init__(self):
        self.clock = SharedIntegers([0, 0])

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([index, self.clock[0], self.clock[1]])

    def set_epoch(self, epoch):
        self.clock[0] = epoch

    def set_seed(self, seed):
        self.clock[1] = seed


class Recorder(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows = []

    def forward(self, inputs, mode):
        self.rows += [tuple(row.tolist()) for row in inputs]
        return dict(loss=self.weight.sum()) if mode == 'loss' else [dict()]

    def train_step(self, data, optim_wrapper):
        losses = self.forward(data, 'loss')
        optim_wrapper.update_params(losses['loss'])
        return losses

    def val_step(self, data):
        return self.forward(data, 'predict')


class Quiet(BaseMetric):
    work_dir = None

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(folder=len(self.work_dir))


def run(tmp_path, train_cfg, dataset):
    loader = dict(
        dataset=dataset,
        batch_size=2,
        num_workers=1,
        persistent_workers=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    model = Recorder()
    runner = OccRunner(
        model,
        work_dir=str(tmp_path),
        train_dataloader=loader,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=dict(loader, dataset=Clocked()),
        val_cfg=dict(),
        val_evaluator=[Quiet()],
        custom_hooks=[SampleSeedHook(), OutputFolderHook()],
        randomness=dict(seed=11),
        experiment_name=tmp_path.name,
    )
    runner.train()
    return model.rows


@pytest.mark.parametrize('by_epoch', [True, False])
def test_workers_see_epoch_and_seed(tmp_path, by_epoch):
    cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
    if not by_epoch:
        cfg = dict(by_epoch=False, max_iters=6, val_interval=6)
    rows = run(tmp_path, cfg, ConcatDataset([Clocked()]))
    assert rows[:12] == [(index, epoch, 11) for epoch in range(3) for index in range(4)]
    assert rows[12:] == [(index, 0, 11) for index in range(4)]


def test_skipped_samples_are_reported(tmp_path):
    run(tmp_path, dict(by_epoch=True, max_epochs=1), Clocked())
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'training: 1 of 4 samples of clocked.pkl' in log and 'validation: 1 of 4 samples' in log
