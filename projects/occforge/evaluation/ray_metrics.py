"""RayIoU and RayPQ as metrics."""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet3d.registry import METRICS
from terminaltables import AsciiTable

from occforge.datasets.occ3d import POINT_CLOUD_RANGE
from occforge.errors import ConfigError, DataError
from occforge.ops import cast_rays, ray_counts

from . import rays
from .ranges import RANGE_EDGES, column_rings, range_names
from .results import Number, percent, results_document
from .streamed import StreamedMetric, check_labels, labels_of, whole_factors

_RAYS_TEXT = (
    '14,040 rays (39 pitches, 360 azimuths) from each of up to 8 LiDAR positions of the scene, cast through '
    'the labels and the prediction without a mask; depth: where a ray leaves the first voxel that is not free; rays '
    'that meet nothing in the labels are left out; in percent; null: no such ray'
)


class _RayMetric(StreamedMetric):
    """What both metrics share: the fields, the origins, the grids."""

    def __init__(
        self,
        thresholds: Sequence[float] = rays.THRESHOLDS,
        class_names: Sequence[str] | None = None,
        free: int | None = None,
        point_cloud_range: Sequence[float] = POINT_CLOUD_RANGE,
        **options,
    ):
        super().__init__(class_names, free, **options)
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        if not 1 <= len(self.thresholds) <= 16 or min(self.thresholds) <= 0:
            raise ConfigError(f"{self.label} field 'thresholds' is {thresholds}, expected 1 to 16 metres above 0")
        if len(point_cloud_range) != 6 or any(a >= b for a, b in zip(point_cloud_range[:3], point_cloud_range[3:])):
            raise ConfigError(
                f"{self.label} field 'point_cloud_range' is {point_cloud_range}, expected lower and upper corner"
            )
        self.point_cloud_range = tuple(float(value) for value in point_cloud_range)
        self._directions = torch.from_numpy(rays.ray_directions()).double()

    def set_classes(self, names, free=None) -> None:
        super().set_classes(names, free)
        if self.free != len(self.class_names) - 1:
            raise ConfigError(f"{self.label} field 'free' is {self.free}, expected the last class")

    def _grid(self, sample: dict) -> tuple:
        """(pred, target, origins, lower, voxel_size) of a sample; the prediction at the labels' resolution."""
        pred = labels_of(sample, 'pred_occ', 'semantics')
        target = labels_of(sample, 'gt_occ', 'semantics', pred.device)
        check_labels(pred, len(self.class_names))
        for axis, factor in enumerate(whole_factors(pred, target)):
            pred = pred if factor == 1 else pred.repeat_interleave(factor, dim=axis)
        target = target.to(torch.uint8)
        # labels to be ignored are no obstacle: the published protocol knows none
        target = torch.where(target < len(self.class_names), target, self.free)
        origins = sample.get('ray_origins')
        if origins is None:
            raise DataError(
                "field 'ray_origins' is missing; NuScenesOccDataset gives it in test mode where the info file has "
                'ego2global and lidar_points.lidar2ego'
            )
        origins = torch.as_tensor(np.asarray(origins, dtype=np.float64)).to(pred.device)
        if origins.ndim != 2 or origins.shape[1] != 3 or not len(origins) or not bool(origins.isfinite().all()):
            raise DataError(
                f"field 'ray_origins' has shape {tuple(origins.shape)}, expected (T, 3) finite metres, T > 0"
            )
        lower, upper = self.point_cloud_range[:3], self.point_cloud_range[3:]
        voxel_size = [(b - a) / n for a, b, n in zip(lower, upper, target.shape)]
        return pred.to(torch.uint8), target, origins, lower, voxel_size

    def _names(self) -> tuple:
        return self.class_names[: self.free]


@METRICS.register_module()
class RayIoU(_RayMetric):
    """RayIoU at 1, 2 and 4 m by SparseOcc's protocol.

    Rays start at up to 8 LiDAR positions of the scene (``ray_origins`` of the sample) and are cast through labels and
    prediction. A class's IoU is hits / (rays that meet it in the labels + in the prediction - hits); a hit is a ray
    that meets it in both, with depths that differ by less than the threshold. Counts are summed over all samples, then
    divided. No mask is used.

    Results, in percent: ``RayIoU`` (mean over classes but free and thresholds), ``RayIoU@1``, ``RayIoU@2``,
    ``RayIoU@4``, ``RayIoU/<range>``, ``RayIoU/<class>`` (mean over the thresholds). The ring of a ray is that of the
    true voxel that it meets.

    Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.

    Args:
        thresholds: metres.
        class_names: names of all classes, free last; default the data set's.
        free: index of the free class.
        point_cloud_range: metres, lower and upper corner of the label grid.
        range_edges: metres; rings around the ego vehicle for which results are given apart.
        out_file: JSON file for this metric alone.
    """

    def __init__(self, *args, range_edges: Sequence[float] = RANGE_EDGES, **options):
        super().__init__(*args, **options)
        self.range_edges = tuple(range_edges)
        self.range_names = range_names(self.range_edges)

    @property
    def counts_shape(self) -> tuple:
        return len(self.range_edges), 2 + len(self.thresholds), self.free

    def count(self, name: str, sample: dict) -> np.ndarray:
        pred, target, origins, lower, voxel_size = self._grid(sample)
        ring = column_rings(target.shape, self.point_cloud_range, self.range_edges).to(target.device)
        counts = ray_counts(
            pred,
            target,
            origins,
            self._directions.to(target.device),
            lower,
            voxel_size,
            self.free,
            self.thresholds,
            self.free,
            ring,
            len(self.range_edges),
        )
        return counts.cpu().numpy()

    def summarize(self, counts: np.ndarray, samples: int, size: int) -> tuple:
        whole = rays.ray_iou(counts.sum(0))
        by_range = [rays.ray_iou(part) for part in counts]
        names = self._names()
        by_class = [rays.nan_mean(column) for column in whole.T]

        def number(name, value, **where):
            return Number(name, 100 * value, 'RayIoU', 'rayiou', 'no_mask', **where)

        logged = [number('RayIoU', rays.nan_mean(whole))]
        logged += [number(f'RayIoU@{t:g}', rays.nan_mean(row)) for t, row in zip(self.thresholds, whole)]
        logged += [
            number(f'RayIoU/{ring}', rays.nan_mean(table), range=ring)
            for ring, table in zip(self.range_names, by_range)
        ]
        logged += [number(f'RayIoU/{name}', value, class_name=name) for name, value in zip(names, by_class)]
        numbers = logged + [
            number(f'RayIoU@{t:g}/{name}', value, class_name=name)
            for t, row in zip(self.thresholds, whole)
            for name, value in zip(names, row)
        ]
        for ring, table in zip(self.range_names, by_range):
            numbers += [
                number(f'RayIoU/{ring}/{name}', rays.nan_mean(column), range=ring, class_name=name)
                for name, column in zip(names, table.T)
            ]
        document = results_document(
            numbers,
            dict(rayiou=f'RayIoU (SparseOcc): {_RAYS_TEXT}; thresholds {list(self.thresholds)} m'),
            samples,
            size,
            self.class_names,
            rays={
                ring: dict(by_true_class=part[0].tolist(), by_predicted_class=part[1].tolist(), hits=part[2:].tolist())
                for ring, part in zip(self.range_names, counts)
            },
        )
        head = ['class', 'RayIoU', *(f'@{t:g} m' for t in self.thresholds), *self.range_names, 'rays']
        met = counts[:, 0].sum(0)
        columns = [by_class, *whole, *([rays.nan_mean(column) for column in table.T] for table in by_range)]
        rows = [
            [name, *(percent(100 * column[c]) for column in columns), f'{met[c]:,}'] for c, name in enumerate(names)
        ]
        means = [rays.nan_mean(table) for table in (whole, *([row] for row in whole), *by_range)]
        rows.append(['mean', *(percent(100 * mean) for mean in means), f'{met.sum():,}'])
        table = AsciiTable([head, *rows], title=f'RayIoU, {samples} of {size} samples, in %, no mask')
        table.inner_footing_row_border = True
        return {n.name: n.value for n in logged}, document, '\n' + table.table


@METRICS.register_module()
class RayPQ(_RayMetric):
    """RayPQ at 1, 2 and 4 m by SparseOcc's protocol: panoptic quality of rays.

    Needs ``instances`` (X, Y, Z), integers, in ``pred_occ`` and ``gt_occ`` beside ``semantics``. Rays and depths as in
    RayIoU; segments and matches as :func:`~occforge.evaluation.rays.panoptic_counts` says.

    Results, in percent: ``RayPQ``, ``RayPQ@1``, ``RayPQ@2``, ``RayPQ@4``, ``RayPQ/<class>``.

    Source: H. Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc), ECCV 2024.

    Args:
        things: names of the classes with instances.
        thresholds, class_names, free, point_cloud_range, out_file: as RayIoU takes them.
    """

    def __init__(self, *args, things: Sequence[str] = rays.THING_CLASSES, **options):
        self._things = tuple(things)
        super().__init__(*args, **options)

    def set_classes(self, names, free=None) -> None:
        super().set_classes(names, free)
        unknown = sorted(set(self._things) - set(self._names()))
        if unknown:
            raise ConfigError(f"RayPQ field 'things' names {unknown}, expected some of {list(self._names())}")
        self.things = tuple(self.class_names.index(name) for name in self._things)

    @property
    def counts_shape(self) -> tuple:
        return len(self.thresholds), 4, self.free

    def count(self, name: str, sample: dict) -> np.ndarray:
        pred, target, origins, lower, voxel_size = self._grid(sample)
        instances = [labels_of(sample, holder, 'instances').cpu().numpy() for holder in ('pred_occ', 'gt_occ')]
        for holder, array in zip(('pred_occ', 'gt_occ'), instances):
            if array.shape != tuple(target.shape) or array.dtype.kind not in 'iu':
                expected = f'integers {tuple(target.shape)}'
                raise DataError(f"field '{holder}.instances' is {array.dtype} {array.shape}, expected {expected}")
        truth, instances[1] = rays.drop_mixed_instances(target.cpu().numpy(), instances[1], self.things, self.free)
        target = torch.from_numpy(truth).to(target.device)
        start = origins.repeat_interleave(len(self._directions), 0)
        along = self._directions.to(target.device).repeat(len(origins), 1)
        sides = []
        for grid, ids in zip((pred, target), instances):
            hits = cast_rays(grid, start, along, lower, voxel_size, self.free)
            cell = hits.cell.long().clamp(min=0).cpu().numpy()
            sides += [hits.label.cpu().numpy(), ids[tuple(cell.T)].astype(np.int64), hits.exit.cpu().numpy()]
        met = sides[3] != self.free
        return rays.panoptic_counts(*(side[met] for side in sides), self.free, self.things, self.thresholds)

    def summarize(self, counts: np.ndarray, samples: int, size: int) -> tuple:
        quality, names = rays.ray_pq(counts), self._names()
        by_class = [rays.nan_mean(column) for column in quality.T]

        def number(name, value, **where):
            return Number(name, 100 * value, 'RayPQ', 'raypq', 'no_mask', **where)

        numbers = [number('RayPQ', rays.nan_mean(quality))]
        numbers += [number(f'RayPQ@{t:g}', rays.nan_mean(row)) for t, row in zip(self.thresholds, quality)]
        numbers += [number(f'RayPQ/{name}', value, class_name=name) for name, value in zip(names, by_class)]
        document = results_document(
            numbers,
            dict(raypq=f'RayPQ (SparseOcc): {_RAYS_TEXT}; thresholds {list(self.thresholds)} m'),
            samples,
            size,
            self.class_names,
            segments=dict(matched=counts[:, 0].tolist(), predicted=counts[:, 1].tolist(), missed=counts[:, 2].tolist()),
        )
        rows = [
            [name, percent(100 * by_class[c]), *(percent(100 * row[c]) for row in quality)]
            for c, name in enumerate(names)
        ]
        rows.append(['mean', *(percent(n.value) for n in numbers[: 1 + len(self.thresholds)])])
        head = ['class', 'RayPQ', *(f'@{t:g} m' for t in self.thresholds)]
        table = AsciiTable([head, *rows], title=f'RayPQ, {samples} of {size} samples, in %, no mask')
        table.inner_footing_row_border = True
        return {n.name: n.value for n in numbers}, document, '\n' + table.table
