"""Class-balanced sampling of key frames (CBGS)."""

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.logging import print_log

from occforge.errors import ConfigError


@DATASETS.register_module()
class OccCBGSDataset:
    """Repeats key frames so that all detection classes that occur come equally often.

    Every class gets the same share of draws (with replacement) from the frames that hold it, as mmdet3d's
    ``CBGSDataset`` does; that one fails where a class does not occur at all. Frames are torn out of their sequences:
    for models that do not remember. Source: Zhu et al., "Class-balanced Grouping and Sampling for Point Cloud 3D Object
    Detection", 2019.

    Args:
        dataset: a dataset or its config, with ``get_cat_ids(index)``.
        seed: of the draws, which are made once.

    Raises:
        ConfigError: no sample has an object.
    """

    def __init__(self, dataset, seed: int = 0, lazy_init: bool = False):
        self.dataset = dataset if isinstance(dataset, BaseDataset) else DATASETS.build(dataset)
        self.seed = seed
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        self.dataset.full_init()
        frames: dict[int, list[int]] = {}
        for index in range(len(self.dataset)):
            for category in set(self.dataset.get_cat_ids(index)):
                frames.setdefault(category, []).append(index)
        if not frames:
            raise ConfigError(f'{type(self).__name__}: none of the {len(self.dataset)} samples has an object')
        rng = np.random.default_rng(self.seed)
        # as many draws as there are (frame, class) pairs, evenly over the classes
        share = sum(map(len, frames.values())) / len(frames)
        draws = [rng.choice(frames[category], round(share)) for category in sorted(frames)]
        self.sample_indices = np.concatenate(draws).astype(np.int64)
        self._fully_initialized = True
        print_log(
            f'class-balanced sampling: {len(self.dataset)} key frames become {len(self.sample_indices)}, '
            f'{len(frames)} classes',
            logger='current',
        )

    @force_full_init
    def _get_ori_dataset_idx(self, idx: int) -> int:
        return int(self.sample_indices[idx])

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(self._get_ori_dataset_idx(idx))

    @force_full_init
    def __len__(self) -> int:
        return len(self.sample_indices)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return self.dataset[self._get_ori_dataset_idx(idx)]
