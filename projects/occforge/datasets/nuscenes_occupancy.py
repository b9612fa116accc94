"""nuScenes key frames with Occ3D labels, as an mmengine dataset."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mmdet3d.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.logging import print_log

from occforge.errors import ConfigError, DataError

from .info_files import load_infos
from .occ3d import CLASS_NAMES, PALETTE, label_map, palette_of
from .ray_origins import scene_ray_origins
from .shared import SharedIntegers
from .transforms.common import matrix


class Visit(NamedTuple):
    """An index that a sampler asks for more than once an epoch; its random numbers differ from visit to visit."""

    index: int
    visit: int


CAMERA_NAMES = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT')


def sequence_groups(scenes: Sequence, split: int | str = 1) -> np.ndarray:
    """The sequence of each of the frames, numbered from 0.

    Args:
        scenes: scene of each frame; the frames of a scene are neighbours.
        split: sequences that a scene is cut into, or 'all': every frame is a sequence. A scene of L frames is cut
            after every ceil(L / split); a short one may give fewer.

    Returns:
        (frames,) int64.
    """
    groups = np.zeros(len(scenes), dtype=np.int64)
    number, start = -1, 0
    for index in range(1, len(scenes) + 1):
        if index < len(scenes) and scenes[index] == scenes[start]:
            continue
        length = index - start
        piece = 1 if split == 'all' else -(-length // split)
        groups[start:index] = number + 1 + np.arange(length) // piece
        number, start = groups[index - 1], index
    return groups


@DATASETS.register_module(name=['NuScenesOccDataset', 'NuScenesDatasetOccpancy'])
class NuScenesOccDataset(BaseDataset):
    """Key frames of a nuScenes info file, with the previous key frames of their scene.

    An item before the transforms is the info file's item (mmdet3d-v2 layout) with absolute paths, and besides

    * ``adjacent``: list of ``num_adjacent`` infos, the key frames before this one, most recent first. Where the scene
      has none the sample's own info stands in (``is_repeat`` says so);
    * ``sample_seed`` and ``rng``: an integer and a ``numpy.random.Generator`` made from (seed, epoch, index). What a
      transform draws from ``rng`` depends neither on the worker nor on the process that loads the sample;
    * with ``aux_frames``: ``aux_infos``, the infos of other key frames of the scene, as far as there are such frames;
    * ``with_gt``: whether the sample counts as labelled (see ``label_fraction``);
    * in testing ``ray_origins``: (T, 3) float64 metres, key ego frame, where the rays of RayIoU start;
    * with ``sequences_split_num``, for models that remember: ``sequence_group_idx``, ``start_of_sequence``,
      ``end_of_sequence``, ``prev_token`` (of the frame before in its sequence, '' at its start) and
      ``curr_to_prev_ego_rt`` (4, 4) float64, the ego pose of this frame in that one, both at the LiDAR's moment; and
      ``sequence_visit``, how often the sequence was played before, where a sampler asks for a ``Visit``;
    * ``lidar_path``, ``camera_names``, ``test_mode``, ``data_root``, ``source`` (the info file's name, for messages).

    The key frames are sorted by time, scene by scene. All annotations live in one buffer (mmengine's
    ``serialize_data``), so that workers share it.

    Args:
        ann_file: info file (mmdet3d-v2 or BEVDet style), relative to ``data_root``.
        data_root: the nuScenes folder. Relative paths of the info file are taken from here, never from the working
            directory.
        pipeline: transforms.
        camera_names: cameras in the order in which the model sees them.
        modality: ``use_camera``, ``use_lidar``: sensors that a sample must have.
        num_adjacent: previous key frames that come with a sample.
        load_interval: keep every n-th key frame (adjacency then counts kept frames, as in the BEVDet family).
        scene_fraction: keep this share of the scenes, whole ones (at least one), evenly spread over the recording.
        tolerance: 'strict': a bad sample is an error that names file and field. 'tolerant': it is replaced by the
            next good one, counted and reported; more than ``max_bad_fraction`` of the data set (seen by one process)
            is an error. In testing such a replacement is scored once, not twice (see OccupancyMetric).
        max_bad_fraction: see ``tolerance``.
        sequences_split_num: cut every scene into so many sequences of (nearly) equal length, or 'all': every frame is
            one. None: no sequences. ``sequence_groups`` then holds the sequence of each sample.
        aux_frames: offsets in key frames, before (negative) or after this one, of frames whose 2D labels a sample may
            use in training. Those beyond the ends of the scene are left out.
        label_fraction: share of the key frames that count as labelled (``with_gt``), evenly spread over the data set;
            the others are shown without 3D labels. What an info file itself calls unlabelled stays so.
        class_map: for classes of one's own (``metainfo=dict(classes=...)``): name of an Occ3D class -> one of them, or
            None (neither trained nor scored), see ``occ3d.label_map``. Classes of the same name need no entry. Labels
            of voxels and pixels then have the numbers of ``classes``.
        seed: of the per-sample random numbers. None: the run's (SampleSeedHook sets it), or 0 without a run.
        data_prefix: folders, relative to ``data_root``, of files that the info file gives by bare name: ``pts``,
            ``sweeps``, ``pts_semantic_mask``, or a camera's name. Default: nuScenes' own.

    Raises:
        ConfigError: an argument cannot be used.
        DataError: the info file cannot be read, or (when a sample is read) a sample is bad.
    """

    METAINFO = dict(classes=CLASS_NAMES, palette=[tuple(colour) for colour in PALETTE.tolist()], dataset='nuscenes')

    def __init__(
        self,
        ann_file: str,
        data_root: str = '',
        pipeline: Sequence = (),
        camera_names: Sequence[str] = CAMERA_NAMES,
        modality: dict | None = None,
        num_adjacent: int = 0,
        load_interval: int = 1,
        scene_fraction: float = 1.0,
        tolerance: str = 'strict',
        max_bad_fraction: float = 0.01,
        sequences_split_num: int | str | None = None,
        aux_frames: Sequence[int] = (),
        label_fraction: float = 1.0,
        class_map: dict | None = None,
        seed: int | None = None,
        data_prefix: dict | None = None,
        **kwargs,
    ):
        if tolerance not in ('strict', 'tolerant'):
            raise ConfigError(f"dataset field 'tolerance' is {tolerance!r}, expected 'strict' or 'tolerant'")
        if load_interval < 1 or num_adjacent < 0 or not 0 <= max_bad_fraction < 1:
            raise ConfigError(
                f'dataset fields load_interval={load_interval} (expected >= 1), num_adjacent={num_adjacent} '
                f'(>= 0), max_bad_fraction={max_bad_fraction} (in [0, 1))'
            )
        if not (sequences_split_num in (None, 'all') or (type(sequences_split_num) is int and sequences_split_num > 0)):
            raise ConfigError(
                f"dataset field 'sequences_split_num' is {sequences_split_num!r}, expected a number above 0, 'all' or "
                'None'
            )
        if any(type(offset) is not int or offset == 0 for offset in aux_frames):
            raise ConfigError(f"dataset field 'aux_frames' is {list(aux_frames)}, expected offsets other than 0")
        if not 0 <= label_fraction <= 1:
            raise ConfigError(f"dataset field 'label_fraction' is {label_fraction}, expected a share in [0, 1]")
        if not 0 < scene_fraction <= 1:
            raise ConfigError(f"dataset field 'scene_fraction' is {scene_fraction}, expected a share in (0, 1]")
        self.aux_frames, self.label_fraction = tuple(aux_frames), label_fraction
        self.scene_fraction = scene_fraction
        self.sequences_split_num = sequences_split_num
        #: (samples,) int64 sequence of each sample, with ``sequences_split_num``
        self.sequence_groups: np.ndarray | None = None
        self.camera_names = tuple(camera_names)
        self.modality = dict(use_camera=True, use_lidar=True)
        unknown = set(modality or {}) - {'use_camera', 'use_lidar', 'use_radar', 'use_map', 'use_external'}
        if unknown:
            raise ConfigError(f"dataset field 'modality' has unknown keys {sorted(unknown)}")
        self.modality.update(modality or {})
        self.num_adjacent = num_adjacent
        self.load_interval = load_interval
        self.tolerance = tolerance
        self.max_bad_fraction = max_bad_fraction
        self.seed = seed
        # read by worker processes at every sample, written by set_epoch in the process of the training loop
        self._clock = SharedIntegers([0, seed or 0])
        self._bad = SharedIntegers([])
        folders = dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP', pts_semantic_mask='')
        folders.update({name: f'samples/{name}' for name in self.camera_names})
        folders.update(data_prefix or {})
        # Built here, with mmdet3d's registry, so that the dataset also works without a Runner's default scope.
        pipeline = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        metainfo = dict(kwargs.pop('metainfo', None) or {})
        classes = metainfo.get('classes', CLASS_NAMES)
        #: Occ3D's class number -> own one, (256,) uint8; None: Occ3D's own classes
        self.label_map = label_map(classes, class_map)
        if self.label_map is not None:
            metainfo.setdefault('palette', palette_of(classes, class_map))
        super().__init__(
            ann_file=ann_file, data_root=data_root, data_prefix=folders, pipeline=pipeline, metainfo=metainfo, **kwargs
        )

    def _join_prefix(self):
        """Only the info file's path: the folders of bare names are joined per file in ``_resolve``."""
        self.data_root = os.path.abspath(self.data_root) if self.data_root else os.getcwd()
        if not os.path.isabs(self.ann_file):
            self.ann_file = os.path.join(self.data_root, self.ann_file)

    # ------------------------------------------------------------------------------------------- reading infos
    def load_data_list(self) -> list[dict]:
        metainfo, data_list = load_infos(self.ann_file)
        for key, value in metainfo.items():
            self._metainfo.setdefault(key, value)
        if not data_list:
            raise DataError(f'{self.ann_file}: holds no samples')
        for index, info in enumerate(data_list):
            for field in ('token', 'timestamp'):
                if field not in info:
                    raise DataError(f'{self.ann_file}: item {index} has no field {field!r}')
        # By time, but scenes stay in one piece even if two cars recorded at once.
        start = {}
        for info in data_list:
            scene = str(info.get('scene_token'))
            start[scene] = min(start.get(scene, np.inf), info['timestamp'])
        data_list.sort(key=lambda info: (start[str(info.get('scene_token'))], str(info.get('scene_token')),
                                         info['timestamp']))  # fmt: skip
        # Without poses there are no origins: an error only if RayIoU asks for them.
        posed = all('ego2global' in info and 'lidar2ego' in (info.get('lidar_points') or {}) for info in data_list)
        if self.test_mode and posed:
            origins = scene_ray_origins(data_list, self.ann_file)
            for info in data_list:
                info['ray_origins'] = origins[str(info['token'])]
        if self.scene_fraction < 1:
            scenes = list(dict.fromkeys(str(info.get('scene_token')) for info in data_list))
            places = np.linspace(0, len(scenes) - 1, max(1, round(self.scene_fraction * len(scenes)))).round()
            kept = {scenes[int(place)] for place in places}
            data_list = [info for info in data_list if str(info.get('scene_token')) in kept]
        data_list = data_list[:: self.load_interval]
        if self.sequences_split_num is not None:
            self._add_sequences(data_list)
        for index, info in enumerate(data_list):
            counted = [int(number * self.label_fraction + 1e-9) for number in (index, index + 1)]
            info['with_gt'] = info.get('with_gt', True) is not False and counted[0] < counted[1]
        return [self.parse_data_info(info) for info in data_list]

    def _add_sequences(self, data_list: list[dict]) -> None:
        scenes = [str(info.get('scene_token')) for info in data_list]
        self.sequence_groups = sequence_groups(scenes, self.sequences_split_num)
        previous = None
        for index, (info, group) in enumerate(zip(data_list, self.sequence_groups.tolist())):
            start = previous is None or group != self.sequence_groups[index - 1]
            end = index + 1 == len(data_list) or group != self.sequence_groups[index + 1]
            pose = matrix(dict(info, source=self.ann_file), info, 'ego2global', '')
            info.update(
                sequence_group_idx=group,
                start_of_sequence=start,
                end_of_sequence=end,
                prev_token='' if start else str(previous[0]),
                curr_to_prev_ego_rt=np.eye(4) if start else np.linalg.inv(previous[1]) @ pose,
            )
            previous = info['token'], pose

    def parse_data_info(self, info: dict) -> dict:
        """Makes the paths of an info absolute, in place."""
        for name, image in (info.get('images') or {}).items():
            if image.get('img_path'):
                image['img_path'] = self._resolve(image['img_path'], self.data_prefix.get(name, f'samples/{name}'))
        lidar = info.get('lidar_points') or {}
        if lidar.get('lidar_path'):
            lidar['lidar_path'] = info['lidar_path'] = self._resolve(lidar['lidar_path'], self.data_prefix['pts'])
        for sweep in info.get('lidar_sweeps') or ():
            points = sweep.get('lidar_points') or {}
            if points.get('lidar_path'):
                points['lidar_path'] = self._resolve(points['lidar_path'], self.data_prefix['sweeps'])
        if info.get('pts_semantic_mask_path'):
            info['pts_semantic_mask_path'] = self._resolve(
                info['pts_semantic_mask_path'], self.data_prefix['pts_semantic_mask']
            )
        occ_path = info.get('occ_path')
        if not occ_path and info.get('scene_name'):
            occ_path = f'gts/{info["scene_name"]}/{info["token"]}/labels.npz'
        if occ_path:
            info['occ_path'] = self._resolve(occ_path, '')
        return info

    def _resolve(self, path: str, folder: str) -> str:
        if os.path.isabs(path):
            return path
        return os.path.normpath(os.path.join(self.data_root, '' if '/' in path else folder, path))

    @force_full_init
    def get_data_info(self, idx: int | Visit) -> dict:
        idx, visit = idx if isinstance(idx, Visit) else (idx, None)
        info = super().get_data_info(idx)
        idx = info['sample_idx']
        info['source'] = self.ann_file
        info['data_root'] = self.data_root
        info['adjacent'] = self._adjacent(info, idx)
        if self.aux_frames:
            info['aux_infos'] = self._auxiliary(info, idx)
        info['camera_names'] = self.camera_names
        info['test_mode'] = self.test_mode
        if self.label_map is not None:
            info['label_map'] = self.label_map
        if visit is not None:
            info['sequence_visit'] = visit
        # The test set is the same in every epoch.
        epoch, seed = self._clock[0], self._clock[1]
        drawn = [idx] if visit is None else [idx, visit]
        seeds = np.random.SeedSequence([seed, 0 if self.test_mode else epoch, *drawn])
        info['sample_seed'] = int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))
        info['rng'] = np.random.default_rng(seeds)
        for sensor, field in (('use_lidar', 'lidar_path'), ('use_camera', 'images')):
            if self.modality[sensor] and not info.get(field):
                raise DataError(f'{self.ann_file}: sample {info["token"]}: field {field!r} is missing')
        return info

    @force_full_init
    def get_cat_ids(self, idx: int) -> list[int]:
        """Detection classes (``bbox_label_3d``) of a sample's valid objects, once each, for class-balanced sampling."""
        instances = super().get_data_info(idx).get('instances') or ()
        return sorted(
            {item['bbox_label_3d'] for item in instances if item['bbox_label_3d'] >= 0 and item['bbox_3d_isvalid']}
        )

    def _adjacent(self, info: dict, idx: int) -> list[dict]:
        frames = []
        for back in range(1, self.num_adjacent + 1):
            other = super().get_data_info(max(idx - back, 0))
            if idx < back or other.get('scene_token') != info.get('scene_token'):
                other = {key: value for key, value in info.items() if key != 'adjacent'}
                other['is_repeat'] = True
            other['source'] = self.ann_file
            frames.append(other)
        return frames

    def _auxiliary(self, info: dict, idx: int) -> list[dict]:
        frames = []
        for offset in self.aux_frames:
            if 0 <= idx + offset < len(self):
                other = super().get_data_info(idx + offset)
                if other.get('scene_token') == info.get('scene_token'):
                    frames.append(dict(other, source=self.ann_file))
        return frames

    def is_labelled(self, idx: int) -> bool:
        """Whether a sample counts as labelled, without loading it."""
        return super().get_data_info(idx)['with_gt']

    # -------------------------------------------------------------------------------- seeds and skipped samples
    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the per-sample seeds, in running workers too."""
        self._clock[0] = epoch

    def set_seed(self, seed: int) -> None:
        """Sets the run's seed, where the config gives the dataset none of its own."""
        if self.seed is None:
            self._clock[1] = seed

    @property
    def skipped(self) -> list[int]:
        """Indices of the samples that this process and its workers have skipped so far (tolerant mode)."""
        return self._bad.nonzero()

    def full_init(self):
        if not self._fully_initialized:
            super().full_init()
            self._choose_sequences(self._indices)
            self._reset_shared()

    def get_subset_(self, indices):
        super().get_subset_(indices)
        self._choose_sequences(indices)
        self._reset_shared()

    def get_subset(self, indices):
        part = super().get_subset(indices)
        part._choose_sequences(indices)
        return part

    def _choose_sequences(self, indices) -> None:
        """Follows a choice of samples: the first (last) so many, or a list."""
        if self.sequence_groups is None or indices is None:
            return
        if isinstance(indices, int):
            self.sequence_groups = self.sequence_groups[:indices] if indices >= 0 else self.sequence_groups[indices:]
        else:
            self.sequence_groups = self.sequence_groups[list(indices)]

    def _reset_shared(self):
        # one number a sample, so that no two workers count into the same one
        self._bad = SharedIntegers([0] * len(self))

    def __getitem__(self, idx: int | Visit) -> dict:
        if not self._fully_initialized:
            self.full_init()
        if isinstance(idx, Visit):
            return self._get_visited(idx)
        if not -len(self) <= idx < len(self):
            raise IndexError(f'sample {idx} of {len(self)}')
        idx %= len(self)
        for _ in range(len(self)):
            if not self._bad[idx]:
                try:
                    data = self.prepare_data(idx)
                    if data is None:
                        raise DataError(f'{self.ann_file}: sample index {idx}: a transform returned nothing')
                    return data
                except DataError as error:
                    if self.tolerance == 'strict':
                        raise
                    self._note_bad(idx, error)
            idx = (idx + 1) % len(self)
        raise DataError(f'{self.ann_file}: none of its {len(self)} samples can be used')

    def _get_visited(self, visit: Visit) -> dict:
        """A frame of a sequence: another one cannot stand in for it, so a bad one is an error."""
        data = self.prepare_data(visit)
        if data is None:
            raise DataError(f'{self.ann_file}: sample index {visit.index}: a transform returned nothing')
        return data

    def _note_bad(self, idx: int, error: DataError) -> None:
        self._bad[idx] = 1
        count, limit = len(self.skipped), self.max_bad_fraction * len(self)
        summary = f'{count} of {len(self)} samples skipped so far'
        if count > limit:
            raise DataError(
                f'{self.ann_file}: {summary}, more than max_bad_fraction={self.max_bad_fraction:g} allows; '
                f'the last one: {error}'
            ) from error
        print_log(f'skipped a bad sample ({summary}): {error}', logger='current', level=30)
