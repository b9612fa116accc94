"""Key frames with boxes and map masks in the LiDAR frame, as mmdet3d's detectors take them."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.registry import DATASETS

from occforge.errors import ConfigError, DataError

from ..info_files import load_infos
from ..shared import SharedIntegers
from .maps import MAP_CLASSES, map_location_of

_SENSORS = ('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_FRONT_LEFT', 'CAM_BACK', 'CAM_BACK_LEFT', 'CAM_BACK_RIGHT')


@DATASETS.register_module()
class BEVNuScenesDataset(NuScenesDataset):
    """mmdet3d's ``NuScenesDataset`` with any cameras, map locations and random numbers of each sample.

    An item before the transforms is mmdet3d's, with ``sample_seed`` and ``rng`` (made from seed, epoch and index; what
    the transforms of this package draw depends on nothing else), ``map_location``, ``data_root`` and ``test_mode``.

    Args:
        data_root: the folder of the tables.
        ann_file: info file (mmdet3d-v2 or BEVDet style), relative to ``data_root``.
        classes: object classes in the model's order; others in the file are left out. Also as ``metainfo['classes']``.
        map_classes: names of the map masks' classes, for the checkpoint's metadata.
        camera_names: cameras of the rig in the model's order; None: as in the file.
        num_cameras: how many there must be, or (with ``camera_names`` None) how many are taken.
        num_samples: take so many key frames, evenly spread over the file; below 1: this share of them; None: all.
        filter_empty_gt: leave out training frames without a box; False keeps them.
        others: of mmdet3d's ``NuScenesDataset``.

    Raises:
        ConfigError, DataError: an argument cannot be used, a field of the file is missing; names both.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        pipeline: Sequence = (),
        classes: Sequence[str] | None = None,
        map_classes: Sequence[str] = MAP_CLASSES,
        camera_names: Sequence[str] | None = None,
        num_cameras: int | None = None,
        num_samples: int | float | None = None,
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        seed: int | None = None,
        modality: dict | None = None,
        **kwargs,
    ):
        metainfo = dict(metainfo or {})
        listed = metainfo.pop('classes', None)  # mmdet3d wants names of nuScenes only: they are matched in _map_labels
        self.object_classes = list(classes if classes is not None else listed or self.METAINFO['classes'])
        metainfo['map_classes'] = list(map_classes)
        if camera_names is not None and num_cameras is not None and len(camera_names) != num_cameras:
            raise ConfigError(f'dataset: num_cameras is {num_cameras}, camera_names has {list(camera_names)}')
        if num_samples is not None and not (0 < num_samples < 1 or num_samples == int(num_samples) >= 1):
            raise ConfigError(f'dataset: num_samples is {num_samples}, expected a number above 0 or a share below 1')
        self.camera_names = None if camera_names is None else tuple(camera_names)
        self.num_cameras, self.num_samples = num_cameras, num_samples
        self.seed = seed
        self._clock = SharedIntegers([0, seed or 0])
        folders = dict(pts='samples/LIDAR_TOP', sweeps='sweeps/LIDAR_TOP')
        folders.update({name: f'samples/{name}' for name in (camera_names or _SENSORS)})
        folders.update(data_prefix or {})
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            pipeline=list(pipeline),
            metainfo=metainfo,
            data_prefix=folders,
            modality=modality or dict(use_camera=True, use_lidar=True),
            **kwargs,
        )

    @property
    def metainfo(self) -> dict:
        return {**super().metainfo, 'classes': tuple(self.object_classes)}

    def _join_prefix(self) -> None:
        """Only the info file's path: files are found in ``parse_data_info``."""
        self.data_root = os.path.abspath(self.data_root)
        if not os.path.isabs(self.ann_file):
            self.ann_file = os.path.join(self.data_root, self.ann_file)

    def load_data_list(self) -> list[dict]:
        metainfo, data_list = load_infos(self.ann_file)
        if not data_list:
            raise DataError(f'{self.ann_file}: holds no samples')
        for key, value in metainfo.items():
            self._metainfo.setdefault(key, value)
        self._metainfo['version'] = metainfo.get('version', self._metainfo.get('version'))
        if 'categories' in metainfo:
            self._map_labels(metainfo['categories'])
        # the place in the whole file: the metric finds the sample's pose by it
        for place, info in enumerate(data_list):
            info['place'] = place
        wanted = self.num_samples
        if wanted is not None and wanted < 1:
            wanted = max(1, round(wanted * len(data_list)))
        if wanted is not None and wanted < len(data_list):
            places = np.linspace(0, len(data_list) - 1, int(wanted)).round().astype(int)
            data_list = [data_list[place] for place in places]
        return [self.parse_data_info(info) for info in data_list]

    def _map_labels(self, categories: Mapping[str, int]) -> None:
        """Labels of the file to places in ``classes``; -1 for the others."""
        wanted = self.object_classes
        unknown = [name for name in wanted if name not in categories]
        if unknown:
            known = [name for name, label in categories.items() if label >= 0]
            raise ConfigError(
                f'{self.ann_file}: no class {", ".join(unknown)} among its {len(known)}: {", ".join(known)}'
            )
        self.label_mapping = dict.fromkeys([*categories.values(), -1], -1)
        for name, label in categories.items():
            if name in wanted:
                self.label_mapping[label] = wanted.index(name)
        self.num_ins_per_cat = [0] * len(wanted)

    def parse_data_info(self, info: dict) -> dict:
        images = info.get('images') or {}
        names = self.camera_names
        if names is None:
            names = tuple(images)[: self.num_cameras]
        missing = [name for name in names if name not in images]
        if self.modality['use_camera'] and (missing or not names or len(names) != (self.num_cameras or len(names))):
            raise DataError(
                f'{self.ann_file}: sample {info.get("token")}: the cameras {", ".join(missing) or names} are wanted'
                f'{f" ({self.num_cameras} of them)" if self.num_cameras else ""}, it has {", ".join(images) or "none"}'
            )
        info['images'] = {name: images[name] for name in names if name in images}
        info['map_location'] = info.get('map_location') or info.get('location')
        resolve = self._resolve
        for name, image in info['images'].items():
            if image.get('img_path'):
                image['img_path'] = resolve(image['img_path'], self.data_prefix.get(name, f'samples/{name}'))
        lidar = info.get('lidar_points') or {}
        if lidar.get('lidar_path'):
            lidar['lidar_path'] = info['lidar_path'] = resolve(lidar['lidar_path'], self.data_prefix['pts'])
        info['num_pts_feats'] = lidar.get('num_pts_feats', 5)
        for sweep in info.get('lidar_sweeps') or ():
            points = sweep['lidar_points']
            points['lidar_path'] = resolve(points['lidar_path'], self.data_prefix['sweeps'])
        if not self.test_mode:
            info['ann_info'] = self.parse_ann_info(info)
        elif self.load_eval_anns:
            info['eval_ann_info'] = self.parse_ann_info(info)
        return info

    def parse_ann_info(self, info: dict) -> dict:
        if 'instances' not in info:
            info = dict(info, instances=[])
        for item in info['instances']:
            if item.get('velocity') is None:
                item['velocity'] = [0.0, 0.0]
            item.setdefault('num_lidar_pts', 1)
            item.setdefault('bbox_3d_isvalid', item['num_lidar_pts'] > 0)
        return super().parse_ann_info(info)

    def _resolve(self, path: str, folder: str) -> str:
        if os.path.isabs(path):
            return path
        return os.path.normpath(os.path.join(self.data_root, '' if '/' in path else folder, path))

    def get_data_info(self, idx: int) -> dict:
        place = int(idx)
        info = super(NuScenesDataset, self).get_data_info(place)
        info['sample_idx'] = info['place']
        info['source'], info['data_root'], info['test_mode'] = self.ann_file, self.data_root, self.test_mode
        if info['map_location'] is None:
            info['map_location'] = map_location_of(self.data_root, self._metainfo.get('version'), info)
        epoch, seed = self._clock[0], self._clock[1]
        # the test set is the same in every epoch
        seeds = np.random.SeedSequence([seed, 0 if self.test_mode else epoch, place])
        info['sample_seed'] = int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))
        info['rng'] = np.random.default_rng(seeds)
        return info

    def get_cat_ids(self, idx: int) -> set[int]:
        """Classes (places in ``classes``) of a training sample, for class-balanced sampling."""
        labels = super(NuScenesDataset, self).get_data_info(idx)['ann_info']['gt_labels_3d']
        return {int(label) for label in labels if label >= 0}

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the per-sample seeds, in running workers too."""
        self._clock[0] = epoch

    def set_seed(self, seed: int) -> None:
        """Sets the run's seed, where the config gives the data set none of its own."""
        if self.seed is None:
            self._clock[1] = seed


@DATASETS.register_module()
class CustomDataset(BEVNuScenesDataset):
    """A vehicle of one's own: an info file in mmdet3d's second layout, with a class list and cameras of its own.

    Needed of a sample: ``token``, ``timestamp`` (seconds), ``ego2global``, ``lidar_points`` (lidar_path, lidar2ego),
    ``images`` {camera: img_path, cam2img, lidar2cam}, ``instances`` (bbox_3d with the gravity centre, bbox_label_3d).
    Free: number and names of the cameras, ``velocity`` (0), ``num_lidar_pts``, ``lidar_sweeps``, ``map_location``
    (without it the sample has no map). The file's ``metainfo['categories']`` names its labels.

    Args:
        dataset_root: another name of ``data_root``.
        ann_file: default ``custom_infos_train.pkl``.
        classes: object classes, any.
        others: of ``BEVNuScenesDataset``.
    """

    def __init__(self, dataset_root: str | None = None, data_root: str | None = None, ann_file='custom_infos_train.pkl',
                 **kwargs):  # fmt: skip
        root = data_root if data_root is not None else dataset_root
        if root is None:
            raise ConfigError('CustomDataset: data_root (or dataset_root) is missing')
        super().__init__(data_root=root, ann_file=ann_file, **kwargs)
