"""Detection metrics of nuScenes: by its own evaluator on its tables, or on the boxes of an info file alone."""

import glob
import math
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from terminaltables import AsciiTable

from occforge.errors import ConfigError, DataError

from .results import DocumentedMetric, Number, results_document

# metres around the vehicle within which a class counts; nuScenes detection task (detection_cvpr_2019)
CLASS_RANGE = dict(
    car=50, truck=50, bus=50, trailer=50, construction_vehicle=50, pedestrian=40, motorcycle=40, bicycle=40,
    traffic_cone=30, barrier=30,
)  # fmt: skip
UNITS = dict(trans_err='m', scale_err='fraction', orient_err='rad', vel_err='m/s', attr_err='fraction')
_ERRORS = dict(trans_err='mATE', scale_err='mASE', orient_err='mAOE', vel_err='mAVE', attr_err='mAAE')
# classes that have no such error
_UNDEFINED = dict(
    orient_err=('traffic_cone',), vel_err=('traffic_cone', 'barrier'), attr_err=('traffic_cone', 'barrier')
)  # fmt: skip


def summarise(
    label_aps: Mapping, label_errors: Mapping, classes: Sequence[str], present: Collection[str]
) -> dict[str, float]:
    """mAP, the mean errors and NDS over ``classes``, and mAP and NDS over those of them that there are boxes of.

    Args:
        label_aps: {class: {distance: AP}}; 0 where the truth has no box of a class, as nuScenes defines it.
        label_errors: {class: {error: value}}; an error that nobody has is left out of the score.
        classes: those that the model knows; others do not count.
        present: those with a box in the truth.
    """
    found = {f'AP/{name}': float(np.mean(list(label_aps[name].values()))) for name in classes}
    there = [name for name in classes if name in present]
    whole, part = (_mean_scores(found, label_errors, names) for names in (classes, there))
    return {**whole, 'present/mAP': part['mAP'], 'present/NDS': part['NDS'], **found}


def _mean_scores(found: Mapping[str, float], label_errors: Mapping, classes: Sequence[str]) -> dict[str, float]:
    if not classes:
        return dict(mAP=0.0, NDS=0.0)
    mean_ap = float(np.mean([found[f'AP/{name}'] for name in classes]))
    errors = {}
    for key, short in _ERRORS.items():
        values = [label_errors[name].get(key, math.nan) for name in classes if name not in _UNDEFINED.get(key, ())]
        if values and not np.all(np.isnan(values)):
            errors[short] = float(np.nanmean(values))
    score = 5 * mean_ap + sum(1 - min(1.0, value) for value in errors.values())
    return dict(mAP=mean_ap, NDS=score / (5 + len(errors)), **errors)


def box_document(
    metrics: Mapping, label_aps: Mapping, label_errors: Mapping, protocol: str, text: str, classes, samples, size
) -> dict:
    """The part of ``results.json`` of a box metric: ``metrics`` of :func:`summarise`, and classes by distance and
    error.

    Args:
        metrics, label_aps, label_errors, classes: of :func:`summarise`.
        protocol, text: its name, and what it counts and how.
        samples, size: how many were scored, samples of the data set.
    """

    def number(name, value, quantity, unit='fraction', class_name=None):
        return Number(name, value, quantity, protocol, None, class_name=class_name, unit=unit)

    numbers = [number(name, metrics[name], name) for name in ('mAP', 'NDS')]
    numbers += [number(f'present/{name}', metrics[f'present/{name}'], name) for name in ('mAP', 'NDS')]
    numbers += [number(mean, metrics[mean], mean, UNITS[key]) for key, mean in _ERRORS.items() if mean in metrics]
    for name in classes:
        numbers.append(number(f'AP/{name}', metrics[f'AP/{name}'], 'AP', class_name=name))
        numbers += [number(f'AP@{d:g}m/{name}', ap, 'AP', class_name=name) for d, ap in label_aps[name].items()]
        numbers += [
            number(f'{mean[1:]}/{name}', label_errors[name][key], mean[1:], UNITS[key], name)
            for key, mean in _ERRORS.items()
            if key in label_errors[name] and name not in _UNDEFINED.get(key, ())
        ]
    return results_document(numbers, {protocol: text}, samples, size, classes)


def box_table(document: Mapping) -> str:
    """The classes of a box metric's document as a table."""
    by_class = {name: {} for name in document['class_names']}
    for number in document['numbers']:
        if number['class_name'] is not None:
            by_class[number['class_name']][number['name'].rpartition('/')[0]] = number['value']
    columns = list(dict.fromkeys(column for row in by_class.values() for column in row))

    def text(value):
        return '-' if value is None else f'{value:.3f}'

    rows = [[name, *(text(row.get(column)) for column in columns)] for name, row in by_class.items()]
    title = f'boxes, {document["samples"]} of {document["dataset_size"]} samples'
    means = ', '.join(
        f'{number["name"]} {text(number["value"])}' for number in document['numbers'] if number['class_name'] is None
    )
    return f'\n{AsciiTable([["class", *columns], *rows], title=title).table}\n{means}'


@METRICS.register_module()
class BEVNuScenesMetric(DocumentedMetric, NuScenesMetric):
    """mAP and NDS by nuscenes-devkit's evaluator, over the classes that the model has.

    The devkit averages over the ten classes of nuScenes: for a model of eight, two would count 0. With all ten the
    numbers are equal.

    Args:
        data_root: the folder of the tables.
        ann_file: info file, absolute or relative to ``data_root``; its boxes' poses are used, read as data.
        others: of mmdet3d's ``NuScenesMetric``.

    Result: ``mAP``, ``NDS``, ``mATE``, ..., ``AP/<class>``; ``present/mAP`` and ``present/NDS``, the same over the
    classes that the truth has a box of: any other counts 0 in nuScenes' mean.

    Raises:
        DataError: the folder has no tables (before any sample is seen), or the info file not all samples of the split.
    """

    def __init__(self, data_root: str, ann_file: str, **kwargs):
        if os.path.isdir(data_root) and not glob.glob(os.path.join(data_root, '*', 'sample.json')):
            raise DataError(
                f'BEVNuScenesMetric: {data_root} has no nuScenes tables (*/sample.json), which the devkit reads; '
                'BEVBoxMetric evaluates by the info file alone'
            )
        if not os.path.isabs(ann_file) and not os.path.exists(ann_file):
            ann_file = os.path.join(data_root, ann_file)
        super().__init__(data_root=data_root, ann_file=ann_file, **kwargs)
        self.default_prefix = None
        self.prefix = kwargs.get('prefix')

    def process(self, data_batch, data_samples) -> None:
        for sample in data_samples:
            boxes = {name: value.to('cpu') for name, value in sample['pred_instances_3d'].items()}
            self.results.append(dict(pred_instances_3d=boxes, sample_idx=sample['sample_idx']))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        from mmengine.logging import MMLogger

        from occforge.datasets.info_files import load_infos

        classes = list(self.dataset_meta['classes'])
        unknown = [name for name in classes if name not in CLASS_RANGE]
        if unknown:
            raise ConfigError(
                f'BEVNuScenesMetric: {", ".join(unknown)}: nuScenes has no such class; BEVBoxMetric evaluates any'
            )
        self.version = self.dataset_meta['version']
        self.data_infos = load_infos(self.ann_file)[1]
        for place, info in enumerate(self.data_infos):
            info['sample_idx'] = place
        with tempfile.TemporaryDirectory() as folder:
            files, _ = self.format_results(results, classes, self.jsonfile_prefix or folder)
            if self.format_only:
                MMLogger.get_current_instance().info(f'results are in {self.jsonfile_prefix}')
                return {}
            found, present = self._evaluate(files['pred_instances_3d'], folder)
        parts = found['label_aps'], found['label_tp_errors']
        metrics = summarise(*parts, classes, present)
        text = (
            f'nuScenes detection by its own evaluator ({self.eval_version}): AP over matches by centre distance, '
            'errors of matches within 2 m; NDS = (5 mAP + sum of 1 - min(1, error)) / (5 + errors); means over the '
            'classes that the model has (present/: those of them with a box in the truth), each within its own '
            'distance of the vehicle; null: no match'
        )
        self.document = box_document(
            metrics, *parts, 'nuscenes_detection', text, classes, len(results), self.dataset_size
        )
        print_log(box_table(self.document), logger='current')
        return metrics

    def _evaluate(self, path: str, folder: str) -> tuple[dict, set[str]]:
        """The evaluator's numbers, and the classes with a box that counts."""
        from nuscenes import NuScenes
        from nuscenes.eval.detection.evaluate import NuScenesEval

        try:
            evaluator = NuScenesEval(
                NuScenes(version=self.version, dataroot=self.data_root, verbose=False),
                config=self.eval_detection_configs,
                result_path=path,
                eval_set=self._eval_set(),
                output_dir=folder,
                verbose=False,
            )
        except AssertionError as error:  # of the devkit's checks
            raise DataError(
                f'BEVNuScenesMetric: {self.ann_file}, {len(self.data_infos)} samples, against split '
                f'{self._eval_set()!r} of {self.data_root}: {error} BEVBoxMetric evaluates the samples of an info file '
                'alone'
            ) from error
        metrics, _ = evaluator.evaluate()
        return metrics.serialize(), {box.detection_name for box in evaluator.gt_boxes.all}

    def _eval_set(self) -> str:
        if os.path.isfile(os.path.join(self.data_root, self.version, 'splits.json')):
            return 'val'
        sets = {'v1.0-mini': 'mini_val', 'v1.0-trainval': 'val', 'v1.0-test': 'test'}
        if self.version not in sets:
            raise ConfigError(
                f'BEVNuScenesMetric: version {self.version!r} is none of {", ".join(sets)}: give '
                f'{self.data_root}/{self.version}/splits.json, or use BEVBoxMetric'
            )
        return sets[self.version]


@METRICS.register_module()
class BEVBoxMetric(DocumentedMetric, BaseMetric):
    """nuScenes' mAP and NDS on the boxes of an info file: for data without nuScenes' tables, and any classes.

    Matching, precision and errors are nuscenes-devkit's. Attributes are not in info files, so NDS is of four errors.

    Args:
        ann_file: info file of the data set that is evaluated.
        class_range: {class: metres} within which a class counts; nuScenes' own, 50 m for others.

    Result: as ``BEVNuScenesMetric``.
    """

    default_prefix = None
    distances, tp_distance = (0.5, 1.0, 2.0, 4.0), 2.0
    max_boxes = 500

    def __init__(
        self,
        ann_file: str,
        data_root: str = '',
        class_range: dict | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        exists = os.path.isabs(ann_file) or os.path.exists(ann_file)
        self.ann_file = ann_file if exists else os.path.join(data_root, ann_file)
        self.class_range = {**CLASS_RANGE, **(class_range or {})}

    def process(self, data_batch, data_samples) -> None:
        for sample in data_samples:
            found = sample['pred_instances_3d']
            self.results.append(
                dict(
                    sample_idx=sample['sample_idx'],
                    boxes=np.concatenate(
                        [
                            found['bboxes_3d'].gravity_center.cpu().numpy(),
                            found['bboxes_3d'].tensor[:, 3:].cpu().numpy(),
                        ],
                        axis=1,
                    ),
                    scores=found['scores_3d'].cpu().numpy(),
                    labels=found['labels_3d'].cpu().numpy(),
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        from nuscenes.eval.common.data_classes import EvalBoxes
        from nuscenes.eval.common.utils import center_distance
        from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp

        from occforge.datasets.info_files import load_infos

        classes = list(self.dataset_meta['classes'])
        metainfo, infos = load_infos(self.ann_file)
        names = {label: name for name, label in metainfo['categories'].items() if label >= 0}
        truth, predicted = EvalBoxes(), EvalBoxes()
        results = sorted(results, key=lambda result: result['sample_idx'])  # equal scores: in the data set's order
        for result in results:
            info = infos[result['sample_idx']]
            token = str(info['token'])
            items = [
                item
                for item in info.get('instances') or ()
                if names.get(item['bbox_label_3d']) in classes
                and item.get('num_lidar_pts', 1) + (item.get('num_radar_pts') or 0) > 0
            ]
            velocity = [item.get('velocity') or (0.0, 0.0) for item in items]
            boxes = np.array([[*item['bbox_3d'][:7], *v] for item, v in zip(items, velocity)]).reshape(-1, 9)
            labels = [names[item['bbox_label_3d']] for item in items]
            truth.add_boxes(token, self._boxes(info, boxes, labels, np.full(len(items), -1.0)))
            best = np.argsort(-result['scores'])[: self.max_boxes]
            labels = [classes[label] for label in result['labels'][best]]
            predicted.add_boxes(token, self._boxes(info, result['boxes'][best], labels, result['scores'][best]))
        if not truth.all:
            raise DataError(f'{self.ann_file}: no box of the classes {", ".join(classes)} within their ranges')
        aps, errors = {}, {}
        for name in classes:
            tables = {d: accumulate(truth, predicted, name, center_distance, d) for d in self.distances}
            aps[name] = {d: calc_ap(table, 0.1, 0.1) for d, table in tables.items()}
            errors[name] = {
                key: calc_tp(tables[self.tp_distance], 0.1, key)
                for key in _ERRORS
                if key != 'attr_err' and name not in _UNDEFINED.get(key, ())
            }
        metrics = summarise(aps, errors, classes, {box.detection_name for box in truth.all})
        ranges = ', '.join(f'{name} {self.class_range.get(name, 50):g} m' for name in classes)
        text = (
            'nuScenes detection on the boxes of an info file: AP over matches by centre distance, errors of matches '
            'within 2 m, no attributes; NDS = (5 mAP + sum of 1 - min(1, error)) / (5 + errors); means '
            'over the classes of the model (present/: those of them with a box in the truth); distance from the '
            f'vehicle within which a class counts: {ranges}; null: no match'
        )
        self.document = box_document(
            metrics, aps, errors, 'box_detection', text, classes, len(results), self.dataset_size
        )
        print_log(box_table(self.document), logger='current')
        return metrics

    def _boxes(self, info: Mapping, boxes: np.ndarray, names: Sequence[str], scores: np.ndarray) -> list:
        """Boxes (G, >= 7; gravity centre) of the LiDAR frame in the global frame, those within their range."""
        from pyquaternion import Quaternion

        lidar2ego = np.asarray(info['lidar_points']['lidar2ego'], dtype=np.float64)
        ego2global = np.asarray(info['ego2global'], dtype=np.float64)
        made = []
        for box, name, score in zip(boxes, names, scores):
            ego = lidar2ego[:3, :3] @ box[:3] + lidar2ego[:3, 3]
            if np.hypot(*ego[:2]) > self.class_range.get(name, 50):
                continue
            place = ego2global[:3, :3] @ ego + ego2global[:3, 3]
            turn = ego2global[:3, :3] @ lidar2ego[:3, :3]
            heading = turn @ np.array([np.cos(box[6]), np.sin(box[6]), 0.0])
            speed = turn @ np.array([*(box[7:9] if len(box) >= 9 else (0.0, 0.0)), 0.0])
            made.append(
                SimpleNamespace(
                    sample_token=str(info['token']),
                    translation=tuple(place),
                    size=(box[4], box[3], box[5]),
                    rotation=tuple(Quaternion(axis=[0, 0, 1], angle=math.atan2(heading[1], heading[0])).elements),
                    velocity=tuple(speed[:2]),
                    ego_translation=tuple(ego),
                    num_pts=1,
                    detection_name=name,
                    detection_score=float(score),
                    attribute_name='',
                )
            )
        return made
