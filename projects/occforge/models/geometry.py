"""Closed forms for the small matrices of cameras and poses.

``torch.linalg.inv`` of a few 3x3 matrices waits for the GPU, needs a solver library that some CUDA builds lack and
cannot be exported; all matrices here have an inverse that can be written down.
"""

import torch


def rigid_inverse(pose: torch.Tensor) -> torch.Tensor:
    """Inverse of rigid poses (..., 4, 4): rotation transposed, translation turned back."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    translation = -(rotation @ pose[..., :3, 3:])
    return torch.cat([torch.cat([rotation, translation], dim=-1), pose[..., 3:, :]], dim=-2)


def inverse_3x3(matrix: torch.Tensor) -> torch.Tensor:
    """Inverse of matrices (..., 3, 3), by cofactors; infinite or NaN where a matrix is singular."""
    a, b, c = matrix.unbind(dim=-2)  # rows
    columns = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1
    )  # (..., 3, 3): the cofactors of row i in column i
    return columns / (a * columns[..., 0]).sum(dim=-1)[..., None, None]


def sensor_to_key_ego(sensor2ego, ego2global, key_ego2global=None) -> torch.Tensor:
    """Camera poses in the key ego frame.

    Args:
        sensor2ego, ego2global: (B, T, N, 4, 4), ego pose at each camera's own moment; T with the key frame first.
        key_ego2global: (B, 4, 4); default the ego pose of the first camera of the key frame.

    Returns:
        (B, T, N, 4, 4) float64, the product in float64: global translations are kilometres.
    """
    sensor2ego, ego2global = sensor2ego.double(), ego2global.double()
    key = ego2global[:, 0, 0] if key_ego2global is None else key_ego2global.double()
    return rigid_inverse(key)[:, None, None] @ ego2global @ sensor2ego


def sensor_to_older_sensor(sensor2ego, ego2global) -> torch.Tensor:
    """From each camera to the same camera one frame earlier.

    Args:
        sensor2ego, ego2global: (B, T, N, 4, 4), T with the key frame first, then older.

    Returns:
        (B, T - 1, N, 4, 4) float64: item t goes from frame t to frame t + 1.
    """
    sensor2global = ego2global.double() @ sensor2ego.double()
    return rigid_inverse(sensor2global[:, 1:]) @ sensor2global[:, :-1]
