"""Image features at 3D positions."""

import torch
from torch.nn import functional as F


def paint_positions(
    positions,
    batch_index,
    features,
    sensor2keyego,
    intrins,
    post_rots,
    post_trans,
    bda,
    input_size,
    depth=None,
    depth_range=None,
):
    """Features of the images at the projections of 3D positions; the mean over the cameras that see a position.

    Source: Vora et al., "PointPainting", CVPR 2020. What hides a position from a camera is painted on it, too; with
    ``depth`` a last column tells how much the camera's depth agrees: positions that are hidden, or that a moving thing
    has left since, can so be told from those that the paint belongs to.

    Args:
        positions: (V, 3) metres in the augmented key ego frame.
        batch_index: (V,) sample of each position.
        features: (B, N, C, h, w); the first and the last pixel of a row lie at u = 0 and u = W - 1, as in
            ``LSSViewTransformer.create_frustum``.
        sensor2keyego: (B, N, 4, 4) camera to key ego frame.
        intrins: (B, N, 3, 3).
        post_rots, post_trans: (B, N, 3, 3), (B, N, 3) image augmentation ``u' = R u + t`` of u and v.
        bda: (B, 3, 3) augmentation of the ego frame.
        input_size: (H, W) of the network's input images.
        depth: (B, N, D, h, w) probabilities of depth bins, or None.
        depth_range: (lower, upper, step) of the bins, metres; bin b stands for lower + b * step.

    Returns:
        (V, C) float32, or (V, C + 1) with the probability that the pixel's depth is within 1.5 bins of the position's;
        0 where no camera sees the position. Gradients flow to ``features`` and ``depth``.
    """
    # pixel = (R_aug K)(bda E)^-1 p: one affine map a camera, made in float64
    to_ego = torch.eye(4, dtype=torch.float64, device=bda.device).repeat(len(bda), 1, 1)
    to_ego[:, :3, :3] = bda
    to_sensor = torch.linalg.inv(to_ego[:, None] @ sensor2keyego.double())
    matrix = (post_rots.double() @ intrins.double() @ to_sensor[..., :3, :]).float()  # (B, N, 3, 4)
    height, width = input_size
    if depth is not None:
        bins = depth.shape[2]
        near = 3 * F.avg_pool3d(depth.float().flatten(0, 1), (3, 1, 1), 1, (1, 0, 0)).unflatten(0, depth.shape[:2])
    channels = features.shape[2] + (depth is not None)
    painted, seen = positions.new_zeros(len(positions), channels), positions.new_zeros(len(positions), 1)
    for sample in range(features.shape[0]):
        rows = (batch_index == sample).nonzero().squeeze(1)
        points = positions[rows].float()
        for camera in range(features.shape[1]):
            m = matrix[sample, camera]
            u, v, metres = (points @ m[:, :3].T + m[:, 3]).unbind(1)
            shift = post_trans[sample, camera]
            metres = metres.clamp(min=1e-3) * (metres > 0.1)  # 0 behind the camera: the division gives no pixel
            u, v = u / metres + shift[0], v / metres + shift[1]
            inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
            hit = inside.nonzero().squeeze(1)
            grid = torch.stack([2 * u[hit] / (width - 1) - 1, 2 * v[hit] / (height - 1) - 1], -1)
            image = features[sample, camera, None].float()
            values = F.grid_sample(image, grid[None, None], mode='bilinear', align_corners=True)
            values = values[0, :, 0].T
            if depth is not None:
                place = 2 * (metres[hit] - depth_range[0]) / depth_range[2] / (bins - 1) - 1
                at = torch.cat([grid, place[:, None]], 1)[None, None, None]
                agrees = F.grid_sample(near[sample, camera, None, None], at, mode='bilinear', align_corners=True)
                values = torch.cat([values, agrees.view(-1, 1)], 1)
            painted = painted.index_add(0, rows[hit], values)
            seen[rows[hit]] += 1
    return painted / seen.clamp(min=1)
