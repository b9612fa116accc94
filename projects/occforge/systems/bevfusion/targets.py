"""Box coder, costs, assignment and heatmap targets of TransFusionHead.

Source: X. Bai et al., "TransFusion: Robust LiDAR-Camera Fusion for 3D Object Detection with Transformers", CVPR 2022.
Boxes are rows (x, y, z of the bottom centre, dx, dy, dz, yaw[, vx, vy]), metres and radians, LiDAR frame.
"""

from collections.abc import Sequence

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.models.task_modules.coders import BaseBBoxCoder
from mmdet3d.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...errors import ConfigError
from ...models.rotated_boxes import box3d_iou


@TASK_UTILS.register_module()
class TransFusionBBoxCoder(BaseBBoxCoder):
    """Boxes to and from (x, y in cells of the plane, z of the middle, log sizes, sin yaw, cos yaw[, vx, vy]).

    Args:
        pc_range: (x, y, ...) lower bounds of the grid, metres.
        out_size_factor: voxels per cell.
        voxel_size: (x, y, ...) metres.
        post_center_range: (x, y, z, x, y, z): predictions elsewhere are dropped; None: none.
        score_threshold: predictions with less are dropped; None or 0: none.
        code_size: 10, or 8 without velocity.
        height_is_top: the height in the code is that of the box's top. So it is in weights of MIT's BEVFusion, which
            were trained with boxes whose middle was taken for their bottom.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        out_size_factor: int,
        voxel_size: Sequence[float],
        post_center_range: Sequence[float] | None = None,
        score_threshold: float | None = None,
        code_size: int = 8,
        height_is_top: bool = False,
    ):
        if code_size not in (8, 10):
            raise ConfigError(f'TransFusionBBoxCoder.code_size is {code_size}, expected 8 or 10 (with velocity)')
        self.pc_range = tuple(pc_range)[:2]
        self.cell = tuple(out_size_factor * size for size in tuple(voxel_size)[:2])
        self.post_center_range = None if post_center_range is None else tuple(post_center_range)
        self.score_threshold = score_threshold
        self.code_size = code_size
        self.height_is_top = height_is_top

    def encode(self, dst_boxes: Tensor) -> Tensor:
        """(N, >= 7) -> (N, code_size). A missing or NaN velocity is 0."""
        lower, cell = dst_boxes.new_tensor(self.pc_range), dst_boxes.new_tensor(self.cell)
        height = dst_boxes[:, 5:6] * (1.0 if self.height_is_top else 0.5)
        code = [
            (dst_boxes[:, :2] - lower) / cell,
            dst_boxes[:, 2:3] + height,
            dst_boxes[:, 3:6].log(),
            dst_boxes[:, 6:7].sin(),
            dst_boxes[:, 6:7].cos(),
        ]
        if self.code_size == 10:
            velocity = dst_boxes[:, 7:9] if dst_boxes.shape[1] >= 9 else dst_boxes.new_zeros(len(dst_boxes), 2)
            code.append(velocity.nan_to_num())
        return torch.cat(code, dim=1)

    def boxes(self, rot: Tensor, dim: Tensor, center: Tensor, height: Tensor, vel: Tensor | None) -> Tensor:
        """Codes (B, ..., P) to boxes (B, P, 7 or 9); nothing given is changed."""
        lower, cell = center.new_tensor(self.pc_range), center.new_tensor(self.cell)
        size = dim.exp()
        bottom = height - size[:, 2:3] * (1.0 if self.height_is_top else 0.5)
        yaw = torch.atan2(rot[:, 0:1], rot[:, 1:2])
        parts = [center * cell[:, None] + lower[:, None], bottom, size, yaw]
        return torch.cat(parts if vel is None else [*parts, vel], dim=1).mT

    def decode(
        self,
        heatmap: Tensor,
        rot: Tensor,
        dim: Tensor,
        center: Tensor,
        height: Tensor,
        vel: Tensor | None,
        filter: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Predictions (B, classes, P), (B, 2, P), (B, 3, P), (B, 2, P), (B, 1, P), (B, 2, P) or None.

        Returns:
            For every sample ``bboxes`` (K, 7 or 9), ``scores`` (K,), ``labels`` (K,); all P without ``filter``.
        """
        scores, labels = heatmap.max(dim=1)
        boxes = self.boxes(rot, dim, center, height, vel)
        keep = torch.ones_like(scores, dtype=torch.bool)
        if filter and self.score_threshold:
            keep &= scores > self.score_threshold
        if filter and self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            keep &= (boxes[..., :3] >= limits[:3]).all(-1) & (boxes[..., :3] <= limits[3:]).all(-1)
        return [dict(bboxes=b[k], scores=s[k], labels=n[k]) for b, s, n, k in zip(boxes, scores, labels, keep)]


@TASK_UTILS.register_module()
class BBoxBEVL1Cost:
    """Sum of the distances along x and y in shares of the range, (predictions, targets)."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self, bboxes: Tensor, gt_bboxes: Tensor, train_cfg) -> Tensor:
        bounds = bboxes.new_tensor(train_cfg['point_cloud_range'])
        lower, side = bounds[:2], bounds[3:5] - bounds[:2]
        return torch.cdist((bboxes[:, :2] - lower) / side, (gt_bboxes[:, :2] - lower) / side, p=1) * self.weight


@TASK_UTILS.register_module()
class IoU3DCost:
    """Negative overlap."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def __call__(self, iou: Tensor) -> Tensor:
        return -iou * self.weight


@TASK_UTILS.register_module()
class HungarianAssigner3D(BaseAssigner):
    """One prediction for every box, at the least total cost.

    Args:
        cls_cost, reg_cost, iou_cost: configs of the costs.
        iou_calculator: accepted for the published configs; the overlap is ``box3d_iou``.
    """

    def __init__(self, cls_cost: dict, reg_cost: dict, iou_cost: dict, iou_calculator: dict | None = None):
        self.cls_cost, self.reg_cost, self.iou_cost = (TASK_UTILS.build(c) for c in (cls_cost, reg_cost, iou_cost))

    @torch.no_grad()
    def assign(self, bboxes: Tensor, gt_bboxes: Tensor, gt_labels: Tensor, cls_pred: Tensor, train_cfg) -> AssignResult:
        """
        Args:
            bboxes: (P, 7 or 9) decoded predictions.
            gt_bboxes, gt_labels: (G, 7 or 9) and (G,).
            cls_pred: (1, classes, P) logits.
            train_cfg: with ``point_cloud_range``.

        Returns:
            AssignResult: ``gt_inds`` (P,) 0 for background, else box number + 1; ``labels`` (P,) -1 for background;
            ``max_overlaps`` (P,) overlap with the box assigned, 0 for background.
        """
        number = len(bboxes)
        gt_inds = torch.zeros(number, dtype=torch.int64, device=bboxes.device)
        labels = torch.full((number,), -1, dtype=torch.int64, device=bboxes.device)
        if not len(gt_bboxes) or not number:
            return AssignResult(len(gt_bboxes), gt_inds, bboxes.new_zeros(number), labels=labels)
        gt_labels = gt_labels.long()
        predicted = InstanceData(scores=cls_pred[0].T.float())
        cost = self.cls_cost(predicted, InstanceData(labels=gt_labels))
        cost = cost + self.reg_cost(bboxes, gt_bboxes, train_cfg)
        iou = box3d_iou(bboxes, gt_bboxes)
        cost = cost + self.iou_cost(iou)
        # a diverged prediction must not stop the training: it is the last to be chosen
        cost = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
        rows, columns = (torch.from_numpy(x).to(bboxes.device) for x in linear_sum_assignment(cost.cpu().numpy()))
        gt_inds[rows] = columns + 1
        labels[rows] = gt_labels[columns]
        overlaps = iou.new_zeros(number)
        overlaps[rows] = iou[rows, columns]
        return AssignResult(len(gt_bboxes), gt_inds, overlaps, labels=labels)


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """Largest shift of a corner (cells) at which a box still overlaps the true one by ``overlap``: the least of the
    three cases of Law and Deng, "CornerNet", ECCV 2018, with the roots as the field's implementations take them."""
    total, product = length + width, length * width
    candidates = []
    for a, b, c in (
        (1.0, total, product * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * product),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * product),
    ):
        candidates.append((b + (b * b - 4 * a * c).sqrt()) / 2)
    return torch.stack(candidates).amin(dim=0)


def draw_heatmap(
    boxes: Tensor, labels: Tensor, num_classes: int, size: Sequence[int], lower, cell, overlap: float, min_radius: int
) -> Tensor:
    """Gaussian bumps at the boxes' places, the largest value where they meet.

    Args:
        boxes: (G, >= 7).
        labels: (G,) classes, those below 0 are left out.
        size: (X, Y) cells.
        lower, cell: (x, y) metres.
        overlap, min_radius: of the bumps, see ``gaussian_radius``.

    Returns:
        (num_classes, X, Y) float32 of 0 to 1.
    """
    heatmap = boxes.new_zeros(num_classes, *size, dtype=torch.float32)
    lower, cell = boxes.new_tensor(lower), boxes.new_tensor(cell)
    place = ((boxes[:, :2] - lower) / cell).trunc()
    sides = boxes[:, 3:5] / cell
    inside = ((place >= 0) & (place < boxes.new_tensor(size))).all(dim=1)
    kept = inside & (sides > 0).all(dim=1) & (labels >= 0)
    place, sides, labels = place[kept].double(), sides[kept], labels[kept].long()
    if not len(place):
        return heatmap
    radius = gaussian_radius(sides[:, 1], sides[:, 0], overlap).trunc().clamp(min=min_radius).double()
    x, y = (
        (torch.arange(n, device=boxes.device) - place[:, axis, None]).abs() for axis, n in enumerate(size)
    )  # (G, X), (G, Y) float64
    sigma = ((2 * radius + 1) / 6)[:, None]
    bump_x, bump_y = ((-(d**2) / (2 * sigma**2)).exp() * (d <= radius[:, None]) for d in (x, y))
    bumps = (bump_x[:, :, None] * bump_y[:, None]).float()
    index = labels[:, None, None].expand_as(bumps)
    return heatmap.scatter_reduce_(0, index, bumps, 'amax')
