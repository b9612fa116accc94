"""Image features at 3D positions."""

import torch
from torch.nn import functional as F


def paint_positions(positions, batch_index, features, sensor2keyego, intrins, post_rots, post_trans, bda, input_size):
    """Features of the images at the projections of 3D positions; the mean over the cameras that see a position.

    Source: Vora et al., "PointPainting", CVPR 2020. There is no test of occlusion.

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

    Returns:
        (V, C) float32, 0 where no camera sees the position. Gradients flow to ``features``.
    """
    # pixel = (R_aug K)(bda E)^-1 p: one affine map a camera, made in float64
    to_ego = torch.eye(4, dtype=torch.float64, device=bda.device).repeat(len(bda), 1, 1)
    to_ego[:, :3, :3] = bda
    to_sensor = torch.linalg.inv(to_ego[:, None] @ sensor2keyego.double())
    matrix = (post_rots.double() @ intrins.double() @ to_sensor[..., :3, :]).float()  # (B, N, 3, 4)
    height, width = input_size
    painted, seen = positions.new_zeros(len(positions), features.shape[2]), positions.new_zeros(len(positions), 1)
    for sample in range(features.shape[0]):
        rows = (batch_index == sample).nonzero().squeeze(1)
        points = positions[rows].float()
        for camera in range(features.shape[1]):
            m = matrix[sample, camera]
            u, v, depth = (points @ m[:, :3].T + m[:, 3]).unbind(1)
            shift = post_trans[sample, camera]
            depth = depth.clamp(min=1e-3) * (depth > 0.1)  # 0 behind the camera: the division gives no pixel
            u, v = u / depth + shift[0], v / depth + shift[1]
            inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
            hit = inside.nonzero().squeeze(1)
            grid = torch.stack([2 * u[hit] / (width - 1) - 1, 2 * v[hit] / (height - 1) - 1], -1)
            image = features[sample, camera, None].float()
            values = F.grid_sample(image, grid[None, None], mode='bilinear', align_corners=True)
            painted = painted.index_add(0, rows[hit], values[0, :, 0].T)
            seen[rows[hit]] += 1
    return painted / seen.clamp(min=1)
