"""Instance and semantic segmentation of indoor scenes by ScanNet's protocol, with coverage and recall."""

import logging
import warnings

import numpy as np
import torch
from mmdet3d.evaluation.functional.scannet_utils.evaluate_semantic_instance import (
    assign_instances_for_scan,
    compute_averages,
    evaluate_matches,
    get_options,
)
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from terminaltables import AsciiTable

from ..datasets.scannet_classes import SCANNET200_GROUPS
from ..errors import ConfigError, DataError
from ..ops import confusion_matrix
from .results import DocumentedMetric, Number, results_document

OBJECT = 'object'  # the one class of class-agnostic evaluation


def scene_matches(number: int, instance, classes, masks, labels, scores, names, options=None) -> dict:
    """Overlaps of a scene's instances with the predicted ones, as mmdet3d's ScanNet evaluation wants them.

    Args:
        number: of the scene, to tell predictions apart.
        instance: (V,) int, instance of each point, negative: void.
        classes: (I,) int, class of each instance, 0..len(names)-1.
        masks: (n, V) bool; labels, scores: (n,).
        names: of the classes.
        options: of the ScanNet evaluation.
    """
    instance, classes = np.asarray(instance), np.asarray(classes)
    if masks.shape[1:] != instance.shape:
        raise DataError(f'predicted masks have shape {masks.shape}, the scene has {len(instance)} points')
    ids = np.full(len(instance), -1, dtype=np.int64)
    inside = instance >= 0
    if inside.any() and int(instance.max()) >= 999:
        raise DataError(f'a scene has {int(instance.max()) + 1} instances, at most 999 are possible')
    ids[inside] = 1000 * (classes[instance[inside]] + 1) + instance[inside] + 1
    valid = tuple(range(1, len(names) + 1))
    found = {
        f'{number}_{i}': dict(mask=mask, label_id=int(label) + 1, conf=float(score))
        for i, (mask, label, score) in enumerate(zip(masks, labels, scores))
    }
    gt, pred = assign_instances_for_scan(
        found, ids, get_options(options), valid, tuple(names), dict(zip(valid, names))
    )  # fmt: skip
    return dict(gt=gt, pred=pred)


def average_precision(matches: list[dict], names, options=None) -> dict:
    """AP (overlaps 0.5 to 0.9), AP50 and AP25, over the classes (``all_ap``, ``all_ap_50%``, ``all_ap_25%``) and of
    each (``classes``), 0..1; nan where there is no instance."""
    options = get_options(options)
    table = evaluate_matches(dict(enumerate(matches)), tuple(names), options)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # the mean of no class
        return compute_averages(table, options, tuple(names))


def scene_coverage(instance, classes, masks, labels, scores, num_classes: int, min_points: int, threshold: float):
    """Coverage of a scene's instances and how many are found.

    Source: Wang et al., SGPN, CVPR 2018 and ASIS, CVPR 2019 (coverage); one-to-one matches by score for recall.

    Args:
        instance, classes, masks, labels, scores: as in ``scene_matches``. Void points do not count.
        min_points: smaller instances and predictions do not count.
        threshold: predictions with a lower score do not count.

    Returns:
        (num_classes, 6) float64: instances, sum of the best IoUs, sum of sizes, sum of size x IoU, instances found
        at IoU 0.5, predictions.
    """
    table = np.zeros((num_classes, 6))
    instance = np.asarray(instance)
    known = instance >= 0
    owner = instance[known]
    sizes = np.bincount(owner, minlength=len(classes))
    masks = np.asarray(masks)[:, known]
    good = (np.asarray(scores) >= threshold) & (masks.sum(1) >= min_points)
    for each in range(num_classes):
        rows = np.flatnonzero((np.asarray(classes) == each) & (sizes >= min_points))
        chosen = np.flatnonzero(good & (np.asarray(labels) == each))
        chosen = chosen[np.argsort(-np.asarray(scores)[chosen], kind='stable')]
        iou = np.zeros((len(rows), len(chosen)))
        for column, number in enumerate(chosen):
            inside = np.bincount(owner[masks[number]], minlength=len(sizes))[rows]
            iou[:, column] = inside / np.maximum(sizes[rows] + masks[number].sum() - inside, 1)
        best = iou.max(1, initial=0)
        free = np.ones(len(rows), dtype=bool)
        for column in range(len(chosen)):
            overlap = np.where(free, iou[:, column], -1)
            if len(rows) and overlap.max() >= 0.5:
                free[overlap.argmax()] = False
        table[each] = len(rows), best.sum(), sizes[rows].sum(), (sizes[rows] * best).sum(), (~free).sum(), len(chosen)
    return table


@METRICS.register_module()
class UnifiedSegMetric(DocumentedMetric, BaseMetric):
    """AP, AP50, AP25, mCov, mWCov, mRec, mPrec and semantic mIoU.

    Args:
        stuff_class_inds, thing_class_inds: semantic classes without and with instances; labels of instances count the
            latter.
        sem_mapping, inst_mapping, id_offset, min_num_points: accepted as in the published configs.
        metric_meta: ``classes``: names of the semantic classes, default the data set's; ``dataset_name`` for the log.
        eval_mode: 'cat_agnostic': one class of objects; 'multi_class'; 'auto': the former where no label of any
            scene is above 0.
        cov_score_thr: predictions with a lower score do not count for coverage and recall.
        min_region_size: points of the smallest instance that counts.
        class_groups: {name: names or numbers of semantic classes}: also the figures of these; 'scannet200': head,
            common and tail classes of ScanNet200.
        show_classes: log a table of the classes.

    Results: ``all_ap``, ``all_ap_50%``, ``all_ap_25%``, ``mcov``, ``mwcov``, ``mrec``, ``mprec``, ``miou``, 0..1, and
    for each group ``miou/<group>`` and with several classes ``all_ap/<group>`` and so on; nan: no class of it occurs.
    """

    def __init__(
        self,
        stuff_class_inds=(0, 1),
        thing_class_inds=None,
        sem_mapping=None,
        inst_mapping=None,
        metric_meta: dict | None = None,
        min_num_points: int = 1,
        id_offset: int = 2**16,
        eval_mode: str = 'auto',
        cov_score_thr: float = 0.0,
        min_region_size: int = 100,
        class_groups: dict | str | None = None,
        show_classes: bool = True,
        submission_prefix: str | None = None,
        logger_keys=None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        if eval_mode not in ('auto', 'cat_agnostic', 'multi_class'):
            raise ConfigError(
                f"UnifiedSegMetric.eval_mode is {eval_mode!r}, expected 'auto', 'cat_agnostic' or 'multi_class'"
            )
        if submission_prefix is not None:
            raise ConfigError('UnifiedSegMetric.submission_prefix is not supported, expected None')
        self._names = (metric_meta or {}).get('classes')
        self.stuff = len(stuff_class_inds)
        if list(stuff_class_inds) != list(range(self.stuff)):
            raise ConfigError(f'UnifiedSegMetric.stuff_class_inds: the first classes are expected, {stuff_class_inds}')
        self.eval_mode, self.cov_score_thr = eval_mode, cov_score_thr
        self.options = dict(min_region_sizes=np.array([min_region_size]))
        self.min_points = min_region_size
        self.show_classes = show_classes
        if isinstance(class_groups, str) and class_groups != 'scannet200':
            raise ConfigError(f"UnifiedSegMetric.class_groups is {class_groups!r}, expected a dict or 'scannet200'")
        self.class_groups = dict(SCANNET200_GROUPS if class_groups == 'scannet200' else class_groups or {})

    @property
    def names(self) -> list[str]:
        """Of the semantic classes: as given, or those of the data set."""
        names = self._names or (self.dataset_meta or {}).get('classes')
        if not names:
            raise ConfigError('UnifiedSegMetric.metric_meta: the names of the semantic classes are missing (classes)')
        return list(names)

    def _numbers(self, group: str, classes) -> list[int]:
        unknown = [each for each in classes if isinstance(each, str) and each not in self.names]
        if unknown:
            raise ConfigError(f'UnifiedSegMetric.class_groups.{group}: unknown classes {unknown}')
        return [self.names.index(each) if isinstance(each, str) else int(each) for each in classes]

    def process(self, data_batch, data_samples) -> None:
        """Compare the predictions of samples (dicts with ``pred_pts_seg`` and ``eval_ann_info``)."""
        for sample in data_samples:
            truth, found = sample['eval_ann_info'], sample['pred_pts_seg']
            semantic = np.asarray(truth['pts_semantic_mask'])
            instance = np.asarray(truth['pts_instance_mask']) - self.stuff
            instance[instance < 0] = -1
            numbers, instance_of = np.unique(instance, return_inverse=True)
            first = np.unique(instance, return_index=True)[1]
            offset = int(numbers[0] < 0)  # the instances as 0..I-1
            instance = instance_of - offset
            classes = semantic[first[offset:]] - self.stuff
            masks, labels = (np.asarray(found[name]) for name in ('pts_instance_mask', 'instance_labels'))
            masks = masks[0] if masks.ndim == 3 else masks
            scores = np.asarray(found['instance_scores'])
            guess = np.asarray(found['pts_semantic_mask'])
            guess = guess[0] if guess.ndim == 2 else guess
            self.results.append(self._scene(semantic, instance, classes, masks, labels, scores, guess))

    def _scene(self, semantic, instance, classes, masks, labels, scores, guess) -> dict:
        things = self.names[self.stuff :]
        scene = dict(highest=int(labels.max(initial=0)))
        confusion = confusion_matrix(torch.from_numpy(guess.astype(np.int64)), torch.from_numpy(
            semantic.astype(np.int64)), len(self.names))  # fmt: skip
        scene['confusion'] = confusion.numpy()
        number = id(scene)  # told apart anew in compute_metrics
        limits = dict(min_points=self.min_points, threshold=self.cov_score_thr)
        if self.eval_mode != 'multi_class':
            one, ones = np.zeros(len(classes), np.int64), np.zeros(len(labels), np.int64)
            scene['agnostic'] = scene_matches(number, instance, one, masks, ones, scores, [OBJECT], self.options)
            scene['agnostic_coverage'] = scene_coverage(instance, one, masks, ones, scores, 1, **limits)
        if self.eval_mode != 'cat_agnostic':
            scene['classes'] = scene_matches(number, instance, classes, masks, labels, scores, things, self.options)
            scene['classes_coverage'] = scene_coverage(
                instance, classes, masks, labels, scores, len(things), **limits
            )  # fmt: skip
        return scene

    def compute_metrics(self, results: list) -> dict:
        """All numbers of all scenes."""
        if not results:
            return {}
        agnostic = self.eval_mode == 'cat_agnostic' or (
            self.eval_mode == 'auto' and max(scene['highest'] for scene in results) == 0
        )
        kind, names = ('agnostic', [OBJECT]) if agnostic else ('classes', self.names[self.stuff :])
        matches = [_renumbered(scene[kind], i) for i, scene in enumerate(results)]
        averages = average_precision(matches, names, self.options)
        coverage = sum(scene[f'{kind}_coverage'] for scene in results)
        confusion = sum(scene['confusion'] for scene in results).astype(np.float64)
        metrics = {name: float(averages[name]) for name in ('all_ap', 'all_ap_50%', 'all_ap_25%')}
        metrics.update(coverage_means(coverage))
        metrics['miou'] = mean_iou(confusion)
        for group, listed in self.class_groups.items():
            numbers = self._numbers(group, listed)
            metrics[f'miou/{group}'] = mean_iou(confusion, numbers)
            if not agnostic:
                own = [averages['classes'][self.names[i]] for i in numbers if i >= self.stuff]
                for name, key in (('all_ap', 'ap'), ('all_ap_50%', 'ap50%'), ('all_ap_25%', 'ap25%')):
                    values = np.array([each[key] for each in own])
                    metrics[f'{name}/{group}'] = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
        self._log(averages, metrics, len(results))
        self.document = self._document(averages, metrics, agnostic, len(results))
        return metrics

    def _document(self, averages: dict, metrics: dict, agnostic: bool, scenes: int) -> dict:
        def number(name, value, quantity, protocol, class_name=None):
            return Number(name, value, quantity, protocol, None, class_name=class_name, unit='fraction')

        short = dict(all_ap='AP', mcov='mCov', mwcov='mWCov', mrec='mRec', mprec='mPrec', miou='mIoU')
        short.update({'all_ap_50%': 'AP50', 'all_ap_25%': 'AP25'})
        protocols = {name: 'scannet_instances' for name in ('all_ap', 'all_ap_50%', 'all_ap_25%')}
        protocols['miou'] = 'semantic_miou'
        numbers = []
        for name, value in metrics.items():
            plain = name.partition('/')[0]
            numbers.append(number(name, value, short[plain], protocols.get(plain, 'instance_coverage')))
        for name, values in averages['classes'].items():
            for key, quantity in (('ap', 'AP'), ('ap50%', 'AP50'), ('ap25%', 'AP25')):
                numbers.append(number(f'{quantity}/{name}', float(values[key]), quantity, 'scannet_instances', name))
        whose = 'all instances as one class' if agnostic else 'mean over the classes with instances'
        return results_document(
            numbers,
            dict(
                scannet_instances=f'AP of instance masks (ScanNet): {whose}, IoU above 0.5 to 0.9 in steps of 0.05; '
                f'AP50 and AP25: above 0.5 and 0.25; instances of at least {self.min_points} points; null: no instance',
                instance_coverage=f'{whose}: mCov, mean of the best IoU of each instance; mWCov, weighted by its '
                f'points; mRec and mPrec at IoU 0.5, one prediction for one instance; predictions with a score of at '
                f'least {self.cov_score_thr:g}',
                semantic_miou='IoU of points, mean over the semantic classes that occur in truth or prediction',
            ),
            scenes,
            self.dataset_size,
            [*self.names, OBJECT] if agnostic else self.names,
            class_agnostic=agnostic,
        )

    def _log(self, averages: dict, metrics: dict, scenes: int) -> None:
        rows = [['class', 'AP', 'AP50', 'AP25']]
        if self.show_classes:
            for name, values in averages['classes'].items():
                if np.isfinite(values['ap']):
                    rows.append([name, *(f'{values[key]:.4f}' for key in ('ap', 'ap50%', 'ap25%'))])
        rows.append(['all', *(f'{metrics[key]:.4f}' for key in ('all_ap', 'all_ap_50%', 'all_ap_25%'))])
        logger = MMLogger.get_current_instance()
        print_log(f'instances of {scenes} scenes\n{AsciiTable(rows).table}', logger=logger, level=logging.INFO)


def _renumbered(matches: dict, number: int) -> dict:
    """The same with names of predictions that no other scene has."""

    def renamed(values):
        if isinstance(values, dict):
            return {
                key: f'{number}_{value.split("_")[1]}' if key == 'filename' else renamed(value)
                for key, value in values.items()
            }
        return [renamed(each) for each in values] if isinstance(values, list) else values

    return renamed(matches)


def coverage_means(table: np.ndarray) -> dict:
    """mCov, mWCov, mRec, mPrec over the classes with instances, from sums of ``scene_coverage``."""
    count, best, size, weighted, found, predictions = table.T
    seen = count > 0
    if not seen.any():
        return dict.fromkeys(('mcov', 'mwcov', 'mrec', 'mprec'), float('nan'))
    return dict(
        mcov=float((best[seen] / count[seen]).mean()),
        mwcov=float((weighted[seen] / size[seen]).mean()),
        mrec=float((found[seen] / count[seen]).mean()),
        mprec=float((found[seen] / np.maximum(predictions[seen], 1)).mean()),
    )


def mean_iou(confusion: np.ndarray, classes=slice(None)) -> float:
    """Mean IoU over those of ``classes`` (default all) that occur, from rows of truth and columns of prediction."""
    hit = confusion.diagonal()
    hit, union = hit[classes], (confusion.sum(0) + confusion.sum(1) - hit)[classes]
    seen = union > 0
    return float((hit[seen] / union[seen]).mean()) if seen.any() else float('nan')
