"""Rings around the vehicle, for results by distance."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from occforge.errors import ConfigError

RANGE_EDGES = (0.0, 20.0, 35.0)  # metres; the last ring is open (Occ3D's corners are 56 m away)


def range_names(edges: Sequence[float]) -> list[str]:
    """'0-20m', '20-35m', '35m+' for the edges 0, 20, 35.

    Raises:
        ConfigError: the edges do not start at 0 or do not increase.
    """
    edges = [float(edge) for edge in edges]
    if not edges or edges[0] != 0 or any(a >= b for a, b in pairwise(edges)) or len(edges) > 16:
        raise ConfigError(f"metric field 'range_edges' is {edges}, expected up to 16 increasing metres that start at 0")
    return [f'{a:g}-{b:g}m' for a, b in pairwise(edges)] + [f'{edges[-1]:g}m+']


def column_rings(shape: Sequence[int], point_cloud_range: Sequence[float], edges: Sequence[float]) -> torch.Tensor:
    """The ring of every column of a grid: (X, Y) uint8, 0 is the innermost.

    Args:
        shape: (X, Y, ...) cells.
        point_cloud_range: metres, lower and upper corner (x, y, z, x, y, z) in the ego frame.
        edges: metres from the ego origin in the ground plane to the column's centre.
    """
    centres = [
        torch.linspace(0.5, n - 0.5, n, dtype=torch.float64) * ((point_cloud_range[a + 3] - point_cloud_range[a]) / n)
        + point_cloud_range[a]
        for a, n in enumerate(shape[:2])
    ]
    distance = torch.hypot(centres[0][:, None], centres[1])
    inner = torch.tensor(list(edges)[1:], dtype=torch.float64)
    return torch.bucketize(distance, inner, right=True).to(torch.uint8)
