"""The database of objects that are pasted into LiDAR scenes, in mmdet3d's layout (for its ``ObjectSample``).

Source: Yan, Mao, Li, "SECOND", Sensors 2018.
"""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import ObjectSample
from mmdet3d.registry import TRANSFORMS

from occforge.errors import ConfigError, DataError
from occforge.fileio import atomic_write
from occforge.models.rotated_boxes import rotated_intersection

from ..info_files import load_infos, load_pickle
from .transforms import BEVLoadPoints, rng_of


def points_in_boxes(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(P, G) bool: which of the points (P, >= 3) lie in which box (G, >= 7) with z at the bottom, borders included."""
    offset = points[:, None, :3] - boxes[None, :, :3]
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    x = offset[..., 0] * cos + offset[..., 1] * sin
    y = offset[..., 1] * cos - offset[..., 0] * sin
    half = boxes[:, 3:5] / 2
    inside = (np.abs(x) <= half[:, 0]) & (np.abs(y) <= half[:, 1])
    return inside & (offset[..., 2] >= 0) & (offset[..., 2] <= boxes[:, 5])


def create_gt_database(
    data_root: str | os.PathLike,
    ann_file: str = 'nuscenes_infos_train.pkl',
    prefix: str = 'nuscenes',
    classes: Sequence[str] | None = None,
    sweeps_num: int = 9,
    reduce_beams: int = 32,
    use_valid_flag: bool = True,
) -> Path:
    """Cut the points of every object out of the training frames.

    Writes ``<data_root>/<prefix>_gt_database/<token>_<class>_<number>.bin``, float32 (P, 5): x, y, z from the centre of
    the box's bottom (metres), intensity, age (seconds); and ``<data_root>/<prefix>_dbinfos_train.pkl``, {class:
    [{name, path, image_idx, gt_idx, box3d_lidar (9,), num_points_in_gt, difficulty, group_id}]}.

    Args:
        data_root: with the sensor files.
        ann_file: info file in it.
        prefix: of what is written.
        classes: those taken; None: all of the file.
        sweeps_num, reduce_beams: see ``BEVLoadPoints``; as in the training that will use it.
        use_valid_flag: leave out objects that no sensor has seen.

    Returns:
        The path of the dbinfos file.

    Raises:
        DataError: the info file or a point cloud cannot be read, or has no object.
    """
    from .dataset import BEVNuScenesDataset

    root = Path(data_root)
    metainfo, _ = load_infos(root / ann_file)
    known = [name for name, label in metainfo.get('categories', {}).items() if label >= 0]
    names = list(classes or known)
    data = BEVNuScenesDataset(
        str(root),
        ann_file,
        classes=names,
        use_valid_flag=use_valid_flag,
        modality=dict(use_camera=False, use_lidar=True),
    )
    load = BEVLoadPoints(sweeps_num=sweeps_num, reduce_beams=reduce_beams)
    folder = root / f'{prefix}_gt_database'
    folder.mkdir(parents=True, exist_ok=True)
    database: dict[str, list[dict]] = {}
    groups = 0
    for index in range(len(data)):
        info = data.get_data_info(index)
        info['test_mode'] = True  # the nearest sweeps, the same in every run
        points = load(info)['points'].tensor.numpy()
        boxes = info['ann_info']['gt_bboxes_3d'].tensor.numpy()
        labels = info['ann_info']['gt_labels_3d']
        inside = points_in_boxes(points, boxes)
        for place, (box, label) in enumerate(zip(boxes, labels)):
            if label < 0:
                continue
            cut = points[inside[:, place]].astype(np.float32)
            cut[:, :3] -= box[:3]
            name = f'{info["token"]}_{names[label]}_{place}.bin'
            with atomic_write(folder / name) as file:
                file.write(cut.tobytes())
            database.setdefault(names[label], []).append(
                dict(
                    name=names[label],
                    path=f'{folder.name}/{name}',
                    image_idx=info['sample_idx'],
                    gt_idx=place,
                    box3d_lidar=box,
                    num_points_in_gt=len(cut),
                    difficulty=0,
                    group_id=groups,
                )
            )
            groups += 1
    if not database:
        raise DataError(f'{root / ann_file}: no object of the classes {", ".join(names)}')
    path = root / f'{prefix}_dbinfos_train.pkl'
    with atomic_write(path) as file:
        pickle.dump(database, file, protocol=4)
    return path


@TRANSFORMS.register_module()
class BEVObjectSample(ObjectSample):
    """Pastes objects of the database into a LiDAR scene, until every class has so many.

    Objects that would meet others (seen from above) are left out, and points of the scene inside pasted boxes go. For
    models without cameras: nothing is pasted into images. mmdet3d's ``DisableObjectSampleHook`` ends it. (mmdet3d's own
    transform asks for a numpy that the rest of mmdet3d 1.4 does not run on.)

    Args:
        db_sampler: fields of mmdet3d's ``DataBaseSampler``: ``data_root``, ``info_path``, ``classes``,
            ``sample_groups`` {class: number}, ``prepare`` (``filter_by_difficulty``, ``filter_by_min_points``),
            ``rate``; ``points_loader`` gives ``load_dim`` and ``use_dim``.
    """

    def __init__(self, db_sampler: dict):
        BaseTransform.__init__(self)
        self.disabled = False
        cfg = dict(db_sampler)
        self.data_root, self.info_path = Path(cfg.get('data_root') or ''), cfg['info_path']
        self.classes, self.groups = list(cfg['classes']), dict(cfg['sample_groups'])
        unknown = [name for name in self.groups if name not in self.classes]
        if unknown:
            raise ConfigError(f'BEVObjectSample: sample_groups has {", ".join(unknown)}, which classes has not')
        self.prepare, self.rate = dict(cfg.get('prepare') or {}), cfg.get('rate', 1.0)
        loader = dict(cfg.get('points_loader') or {})
        self.load_dim = loader.get('load_dim', 5)
        columns = loader.get('use_dim', self.load_dim)
        self.columns = list(range(columns)) if isinstance(columns, int) else list(columns)
        self._database: dict[str, list[dict]] | None = None

    @property
    def database(self) -> dict[str, list[dict]]:
        """Entries of each class after ``prepare``; read when the first sample wants them."""
        if self._database is None:
            database = load_pickle(self.info_path)
            hard = set(self.prepare.get('filter_by_difficulty') or ())
            least = self.prepare.get('filter_by_min_points') or {}
            self._database = {
                name: [
                    entry
                    for entry in database.get(name, ())
                    if entry['difficulty'] not in hard and entry['num_points_in_gt'] >= least.get(name, 0)
                ]
                for name in self.groups
            }
        return self._database

    def transform(self, results: dict) -> dict:
        if self.disabled:
            return results
        rng = rng_of(results)
        boxes, labels = results['gt_bboxes_3d'], np.asarray(results['gt_labels_3d'])
        present = boxes.tensor
        chosen: list[dict] = []
        for name, wanted in self.groups.items():
            missing = round(self.rate * (wanted - int((labels == self.classes.index(name)).sum())))
            entries = self.database[name]
            if missing <= 0 or not entries:
                continue
            for place in rng.choice(len(entries), min(missing, len(entries)), replace=False):
                box = torch.from_numpy(np.asarray(entries[place]['box3d_lidar'], dtype=np.float32))[None]
                flat = [0, 1, 3, 4, 6]
                if (rotated_intersection(box[:, flat], present[:, flat]) > 0).any():
                    continue
                present = torch.cat([present, box[:, : present.shape[1]]])
                chosen.append(entries[place])
        if not chosen:
            return results
        points = results['points']
        pasted = present[len(boxes) :]
        inside = points_in_boxes(points.tensor.numpy(), pasted.numpy()).any(axis=1)
        clouds = [points.tensor[torch.from_numpy(~inside)]]
        for entry in chosen:
            cut = np.fromfile(self.data_root / entry['path'], np.float32).reshape(-1, self.load_dim)[:, self.columns]
            cut[:, :3] += entry['box3d_lidar'][:3]
            clouds.append(torch.from_numpy(cut))
        results['points'] = points.new_point(torch.cat(clouds))
        results['gt_bboxes_3d'] = boxes.new_box(present)
        added = [self.classes.index(entry['name']) for entry in chosen]
        results['gt_labels_3d'] = np.concatenate([labels, np.array(added, dtype=labels.dtype)])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(info_path={self.info_path!r}, sample_groups={self.groups})'
