"""Image features at 3D positions."""

import torch
from torch.nn import functional as F

_CELL = 4  # pixels along a side of the cells in which positions hide each other


def paint_positions(
    positions, batch_index, features, sensor2keyego, intrins, post_rots, post_trans, bda, input_size, used=None
):
    """Features of the images at the projections of 3D positions; the mean over the cameras that see a position.

    Source: Vora et al., "PointPainting", CVPR 2020. There what hides a position from a camera is painted on it, too.
    Here the positions themselves tell: the nearest of those that fall into a cell of 4 x 4 pixels is seen, and the
    weight of those behind it falls with the fourth power of the ratio of both depths. Cameras may be of several
    moments.

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
        used: (B, N) bool, cameras that count; None: all.

    Returns:
        (V, C + 1) float32; the last column is the largest of the ratios, 1 for what nothing hides. 0 where no camera
        sees the position. Gradients flow to ``features``.
    """
    # pixel = (R_aug K)(bda E)^-1 p: one affine map a camera, made in float64
    to_ego = torch.eye(4, dtype=torch.float64, device=bda.device).repeat(len(bda), 1, 1)
    to_ego[:, :3, :3] = bda
    to_sensor = torch.linalg.inv(to_ego[:, None] @ sensor2keyego.double())
    matrix = (post_rots.double() @ intrins.double() @ to_sensor[..., :3, :]).float()  # (B, N, 3, 4)
    height, width = input_size
    columns, cells = -(-width // _CELL), -(-height // _CELL) * -(-width // _CELL)
    rows, values, ratios = [], [], []
    for sample, cameras in enumerate(matrix):
        own = (batch_index == sample).nonzero().squeeze(1)
        pixels = positions[own].float() @ cameras[..., :3].flatten(0, 1).T + cameras[..., 3].flatten()
        for camera, (u, v, metres) in enumerate(pixels.T.unflatten(0, (-1, 3))):
            shift = post_trans[sample, camera]
            metres = metres.clamp(min=1e-3) * (metres > 0.1)  # 0 behind the camera: the division gives no pixel
            u, v = u / metres + shift[0], v / metres + shift[1]
            inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
            if used is not None:
                inside &= used[sample, camera]
            hit = inside.nonzero().squeeze(1)
            u, v, metres = u[hit], v[hit], metres[hit]
            cell = (v / _CELL).long() * columns + (u / _CELL).long()
            nearest = metres.new_full((cells,), torch.inf).scatter_reduce(0, cell, metres, 'amin')
            grid = torch.stack([2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1], -1)
            image = features[sample, camera, None].float()
            found = F.grid_sample(image, grid[None, None], mode='bilinear', align_corners=True)
            rows.append(own[hit])
            values.append(found[0, :, 0].T)
            ratios.append(nearest[cell] / metres)
    rows, ratios = torch.cat(rows), torch.cat(ratios)
    weights = ratios**4
    painted = positions.new_zeros(len(positions), features.shape[2], dtype=torch.float32)
    painted = painted.index_add(0, rows, torch.cat(values) * weights[:, None])
    total = weights.new_zeros(len(positions)).index_add(0, rows, weights)
    clear = weights.new_zeros(len(positions)).scatter_reduce(0, rows, ratios, 'amax')
    return torch.cat([painted / total.clamp(min=1e-6)[:, None], clear[:, None]], 1)
