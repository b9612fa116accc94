"""Overlap of turned boxes and non-maximum suppression, in plain torch: no compiled mmcv is needed on any device.

Boxes are rows (x, y, z of the bottom centre, dx, dy, dz, yaw, ...) in metres and radians; seen from above
(x, y, dx, dy, yaw). Nothing here is differentiable.
"""

import torch
from torch import Tensor

__all__ = ['bev_nms', 'box3d_iou', 'rotated_intersection', 'rotated_iou']


def _corners(boxes: Tensor) -> Tensor:
    """(N, 5) -> (N, 4, 2), counter-clockwise."""
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    offsets = signs * boxes[:, None, 2:4]
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    x = offsets[..., 0] * cos - offsets[..., 1] * sin
    y = offsets[..., 0] * sin + offsets[..., 1] * cos
    return torch.stack([x, y], dim=-1) + boxes[:, None, :2]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _area_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Common area of the rectangles a (K, 5) and b (K, 5), pair by pair, in float64.

    The corners of the common polygon are the corners of either that lie in the other and the crossings of the sides.
    """
    middle = (a[:, :2] + b[:, :2]) / 2  # differences of large coordinates would lose digits
    a, b = a.clone(), b.clone()
    a[:, :2] -= middle
    b[:, :2] -= middle
    corners_a, corners_b = _corners(a), _corners(b)
    sides_a, sides_b = corners_a.roll(-1, 1) - corners_a, corners_b.roll(-1, 1) - corners_b
    between = corners_b[:, None] - corners_a[:, :, None]  # (K, 4, 4, 2)
    denominator = _cross(sides_a[:, :, None], sides_b[:, None])
    parallel = denominator.abs() < 1e-12
    safe = torch.where(parallel, 1.0, denominator)
    t = _cross(between, sides_b[:, None]) / safe
    s = _cross(between, sides_a[:, :, None]) / safe
    crossing = ~parallel & (t >= 0) & (t <= 1) & (s >= 0) & (s <= 1)
    crossings = corners_a[:, :, None] + t[..., None] * sides_a[:, :, None]
    points = torch.cat([crossings.flatten(1, 2), corners_a, corners_b], dim=1)  # (K, 24, 2)
    valid = torch.cat([crossing.flatten(1, 2), _inside(corners_a, b), _inside(corners_b, a)], dim=1)
    number = valid.sum(dim=1)
    centre = (points * valid[..., None]).sum(dim=1) / number.clamp(min=1)[:, None]
    points = points - centre[:, None]
    angle = torch.where(valid, torch.atan2(points[..., 1], points[..., 0]), torch.inf)
    order = angle.argsort(dim=1)
    points = points.gather(1, order[..., None].expand_as(points))
    # what does not count repeats the first corner, and so adds nothing
    counts = torch.arange(points.shape[1], device=points.device) < number[:, None]
    points = torch.where(counts[..., None], points, points[:, :1])
    area = _cross(points, points.roll(-1, 1)).sum(dim=1).abs() / 2
    return torch.where(number > 2, area, 0.0)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which of (K, 4, 2) points lie in their box (K, 5), borders included."""
    offsets = points - boxes[:, None, :2]
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    x = offsets[..., 0] * cos + offsets[..., 1] * sin
    y = offsets[..., 1] * cos - offsets[..., 0] * sin
    half = boxes[:, None, 2:4] / 2 + 1e-9
    return (x.abs() <= half[..., 0]) & (y.abs() <= half[..., 1])


@torch.no_grad()
def rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common areas (N, M) of rectangles (N, 5) and (M, 5): x, y, dx, dy, yaw. Square metres, float64."""
    a, b = a.detach().double(), b.detach().double()
    areas = a.new_zeros(len(a), len(b))
    reach = (a[:, 2:4].norm(dim=1)[:, None] + b[:, 2:4].norm(dim=1)) / 2
    near = torch.cdist(a[:, :2], b[:, :2], compute_mode='donot_use_mm_for_euclid_dist') < reach
    first, second = near.nonzero(as_tuple=True)
    if len(first):
        areas[first, second] = _area_of_pairs(a[first], b[second])
    return areas


@torch.no_grad()
def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N, M) of rectangles (N, 5) and (M, 5): x, y, dx, dy, yaw. float64."""
    common = rotated_intersection(a, b)
    total = (a[:, 2] * a[:, 3]).double()[:, None] + (b[:, 2] * b[:, 3]).double()
    return common / (total - common).clamp(min=1e-8)


@torch.no_grad()
def box3d_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N, M) of boxes (N, >= 7) and (M, >= 7), z at the bottom. dtype of ``a``."""
    area = rotated_intersection(a[:, [0, 1, 3, 4, 6]], b[:, [0, 1, 3, 4, 6]])
    bottom_a, bottom_b = a[:, 2].double(), b[:, 2].double()
    top_a, top_b = bottom_a + a[:, 5].double(), bottom_b + b[:, 5].double()
    height = torch.minimum(top_a[:, None], top_b) - torch.maximum(bottom_a[:, None], bottom_b)
    common = area * height.clamp(min=0)
    total = a[:, 3:6].double().prod(dim=1)[:, None] + b[:, 3:6].double().prod(dim=1)
    return (common / (total - common).clamp(min=1e-8)).to(a.dtype)


@torch.no_grad()
def bev_nms(
    boxes: Tensor, scores: Tensor, threshold: float, pre_max_size: int | None = None, post_max_size: int | None = None
) -> Tensor:
    """Greedy suppression of rectangles that overlap a better one.

    Args:
        boxes: (N, 5) x, y, dx, dy, yaw.
        scores: (N,).
        threshold: of the intersection over union, above which the worse one goes.
        pre_max_size: so many best ones take part.
        post_max_size: so many are kept.

    Returns:
        (K,) int64 indices, best first.
    """
    order = scores.argsort(descending=True, stable=True)[:pre_max_size]
    overlaps = (rotated_iou(boxes[order], boxes[order]) > threshold).cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for index in range(len(order)):
        if alive[index]:
            kept.append(index)
            alive &= ~overlaps[index]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)][:post_max_size]
