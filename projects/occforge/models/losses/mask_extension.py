"""Training masks between "what a camera observes" and "everything"."""

import torch

from ...errors import ConfigError, DataError

_KINDS = ('occupied', 'free')


def check_extension(extension: dict, field: str) -> None:
    """Raise ConfigError unless ``extension`` holds the arguments ``where`` and ``radius`` of ``extend_mask``."""
    if set(extension) - {'where', 'radius'} or extension.get('where') not in _KINDS:
        raise ConfigError(
            f"{field} is {dict(extension)}, expected dict(where='occupied' or 'free', radius=metres or None)"
        )
    radius = extension.get('radius')
    if radius is not None and radius <= 0:
        raise ConfigError(f'{field}.radius is {radius}, expected metres above 0, or None')


def extend_mask(mask, semantics, free_index: int, point_cloud_range, where: str, radius: float | None = None):
    """Adds voxels near the centre of the grid to a training mask, whatever the mask says of them.

    Args:
        mask: (..., X, Y, Z) bool, supervised voxels.
        semantics: (..., X, Y, Z) integer labels.
        free_index: the class "free".
        point_cloud_range: (x0, y0, z0, x1, y1, z1) of the grid in metres.
        where: 'occupied' adds voxels that are not free, 'free' free ones.
        radius: horizontal distance of a voxel's centre from that of the grid, metres, up to which they are added.
            None: any.

    Returns:
        (..., X, Y, Z) bool.

    Raises:
        DataError: mask and labels are of different grids.
    """
    if mask.shape[-3:] != semantics.shape[-3:]:
        raise DataError(
            f'mask_extension: the mask has the grid {tuple(mask.shape[-3:])}, '
            f'the labels {tuple(semantics.shape[-3:])}, expected the same'
        )
    wanted = semantics == free_index if where == 'free' else semantics != free_index
    if radius is not None:
        squares = []
        for axis in range(2):
            count = semantics.shape[axis - 3]
            size = (point_cloud_range[axis + 3] - point_cloud_range[axis]) / count
            squares.append(((torch.arange(count, device=mask.device) - (count - 1) / 2) * size).square())
        near = squares[0][:, None] + squares[1][None] <= radius**2
        wanted = wanted & near[..., None]
    return mask.bool() | wanted
