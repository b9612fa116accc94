"""Labelled and unlabelled frames: which of them a training sees, and how they meet in a batch."""

from collections.abc import Iterator

import numpy as np
from mmdet3d.registry import DATA_SAMPLERS, DATASETS
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from occforge.errors import ConfigError


def labelled_flags(dataset) -> np.ndarray:
    """(samples,) bool: which samples of a dataset, or of mmengine's wrappers around some, count as labelled."""
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    if hasattr(dataset, 'is_labelled'):
        return np.array([dataset.is_labelled(index) for index in range(len(dataset))], dtype=bool)
    if hasattr(dataset, 'datasets'):
        return np.concatenate([labelled_flags(part) for part in dataset.datasets])
    raise ConfigError(f'{type(dataset).__name__} does not say which of its samples are labelled')


@DATASETS.register_module()
class LabelledFrames:
    """The labelled frames of a dataset alone: training with a part of the labels and nothing else.

    Args:
        dataset: a dataset or its config, with ``label_fraction``.

    Raises:
        ConfigError: no frame is labelled.
    """

    def __init__(self, dataset, lazy_init: bool = False):
        self.dataset = dataset if isinstance(dataset, BaseDataset) else DATASETS.build(dataset)
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        self.sample_indices = np.flatnonzero(labelled_flags(self.dataset))
        if not len(self.sample_indices):
            raise ConfigError(f'LabelledFrames: none of the {len(self.dataset)} samples is labelled')
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(int(self.sample_indices[idx]))

    @force_full_init
    def __len__(self) -> int:
        return len(self.sample_indices)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return self.dataset[int(self.sample_indices[idx])]


@DATA_SAMPLERS.register_module()
class LabelMixBatchSampler(Sampler):
    """Batches with a fixed number of labelled frames, the rest unlabelled.

    An epoch shows every unlabelled frame about once; labelled ones, of which there are fewer, come again, each time in
    a new order. The same on every number of processes that have the same total batch. Resumable: which frames a batch
    has depends on seed, epoch and place.

    Args:
        sampler: of the dataloader; gives dataset, seed and epoch (mmengine's ``DefaultSampler``).
        batch_size: frames a process and batch.
        labelled: labelled ones among them.
        drop_last: accepted; an epoch has whole batches.

    Raises:
        ConfigError: there are no labelled or no unlabelled frames, or ``labelled`` is not below ``batch_size``.
    """

    def __init__(self, sampler, batch_size: int, labelled: int = 1, drop_last: bool = False, rank_and_world=None):
        if not 0 < labelled < batch_size:
            raise ConfigError(
                f'LabelMixBatchSampler.labelled is {labelled}, expected 1 to {batch_size - 1} of {batch_size}'
            )
        self.sampler, self.batch_size, self.labelled = sampler, batch_size, labelled
        self.rank, self.world = get_dist_info() if rank_and_world is None else rank_and_world
        flags = labelled_flags(sampler.dataset)
        self.pools = np.flatnonzero(flags), np.flatnonzero(~flags)
        for pool, name in zip(self.pools, ('labelled', 'unlabelled')):
            if not len(pool):
                raise ConfigError(f'LabelMixBatchSampler: the dataset has no {name} frames: see its label_fraction')

    def __len__(self) -> int:
        return max(1, len(self.pools[1]) // ((self.batch_size - self.labelled) * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.sampler.seed or 0, self.sampler.epoch])
        shares = self.labelled, self.batch_size - self.labelled
        orders = []
        for pool, share in zip(self.pools, shares):
            wanted = len(self) * share * self.world
            rounds = -(-wanted // len(pool))
            orders.append(np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:wanted])
        for step in range(len(self)):
            batch = []
            for order, share in zip(orders, shares):
                start = (step * self.world + self.rank) * share
                batch += order[start : start + share].tolist()
            yield batch
