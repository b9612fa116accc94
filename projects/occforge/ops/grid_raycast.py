"""Rays through a dense grid of labels: first hit (RayIoU, synthetic sensors) and observed cells (visibility masks)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ._backend import choose, compiled
from ._checks import check_device, check_tensor, three_floats

__all__ = ['RayHits', 'cast_rays', 'cast_rays_reference', 'observed_cells', 'observed_cells_reference']

_INF = float('inf')


class RayHits(NamedTuple):
    """What ``cast_rays`` found, one row a ray. Distances are multiples of the length of the ray's direction."""

    label: torch.Tensor  # (R,) uint8: label of the first cell that is not free, or `free`
    cell: torch.Tensor  # (R, 3) int32: its index (x, y, z), or -1
    entry: torch.Tensor  # (R,) float64: where the ray enters it (0 if it starts inside), or inf
    exit: torch.Tensor  # (R,) float64: where the ray leaves it; without a hit, where it leaves the grid


def _label_grid(grid: torch.Tensor, shape: str, ndim) -> torch.Tensor:
    check_tensor('grid', grid, shape, ndim, dtypes=(torch.uint8, torch.bool))
    return grid.view(torch.uint8) if grid.dtype == torch.bool else grid


def _rays(name: str, value: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value, device=device)
    if not value.dtype.is_floating_point:
        raise TypeError(f'{name} must be floating point, found {str(value.dtype).removeprefix("torch.")}')
    if value.ndim == 1:
        value = value[None]
    check_tensor(name, value, '(R, 3) or (3,)', 2, 3)
    return value.detach().to(torch.float64)


def _broadcast(a: torch.Tensor, b: torch.Tensor, names: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    if a.shape[0] != b.shape[0] and 1 not in (a.shape[0], b.shape[0]):
        raise ValueError(f'{names[0]} and {names[1]} must have as many rows, found {a.shape[0]} and {b.shape[0]}')
    rays = a.shape[0] if b.shape[0] == 1 else b.shape[0]
    return a.expand(rays, 3), b.expand(rays, 3)


def _check_free(free: int) -> int:
    if not 0 <= int(free) <= 255:
        raise ValueError(f'free must be in 0..255, found {free}')
    return int(free)


def cast_rays(
    grid: torch.Tensor,
    origins: torch.Tensor,
    directions: torch.Tensor,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    free: int = 17,
    grid_index: torch.Tensor | None = None,
    max_distance: float = _INF,
) -> RayHits:
    """First cell with a label other than ``free`` along each ray.

    Every cell that the ray crosses is visited in order, in double precision; the cell that holds the origin counts. A
    cell owns its lower faces: cell i covers [lower + i s, lower + (i + 1) s). A ray through an edge or a corner exactly
    passes through one of the neighbours first (z before y before x). A ray that starts outside the grid is followed
    from where it enters.

    Args:
        grid: (G, X, Y, Z) or (X, Y, Z) labels, uint8 (or bool, with ``free=0``).
        origins: (R, 3) or (3,) start points x, y, z in metres, any floating dtype (computed in float64).
        directions: (R, 3) or (3,) directions, of any length above 0. Distances come back as multiples of that length:
            metres for unit vectors, fractions of the segment for ``target - origin``.
        lower: metres, lower corner of the grid (x, y, z), for instance ``[-40, -40, -1]``.
        voxel_size: metres, size of a cell (x, y, z), for instance ``[0.4, 0.4, 0.4]``.
        free: the label that rays pass through.
        grid_index: (R,) int64, which of the G grids each ray is cast in; may be left out if there is one.
        max_distance: cells entered farther away than this are not looked at.

    Returns:
        RayHits: label (R,) uint8, cell (R, 3) int32, entry (R,) float64, exit (R,) float64. Without a hit: label
        ``free``, cell -1, entry inf, and exit the distance at which the ray leaves the grid (``max_distance`` if that
        comes first, 0 if it never is inside). A ray with NaN or infinity in it, or of direction 0: as without a hit,
        and entry and exit are NaN.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the CPU also a grid_index out of range (on a GPU such a
            ray gives NaN, since raising would make the host wait).

    Not differentiable. Deterministic. CPU (threaded) and CUDA.
    Source: J. Amanatides, A. Woo, "A Fast Voxel Traversal Algorithm for Ray Tracing", Eurographics 1987.
    """
    grid = _label_grid(grid, '(G, X, Y, Z) or (X, Y, Z)', (3, 4))
    grid = grid[None] if grid.ndim == 3 else grid
    origins, directions = _broadcast(
        _rays('origins', origins, grid.device), _rays('directions', directions, grid.device), ('origins', 'directions')
    )
    if grid_index is None:
        if grid.shape[0] != 1:
            raise ValueError(f'grid_index is needed to choose among {grid.shape[0]} grids')
        grid_index = torch.zeros(origins.shape[0], dtype=torch.int64, device=grid.device)
    check_tensor('grid_index', grid_index, '(R,)', 1, origins.shape[0], (torch.int64,))
    check_device(grid=grid, origins=origins, directions=directions, grid_index=grid_index)
    max_distance = float(max_distance)
    if not max_distance >= 0:
        raise ValueError(f'max_distance must not be negative, found {max_distance}')
    arguments = (
        grid,
        origins,
        directions,
        grid_index,
        three_floats('lower', lower),
        three_floats('voxel_size', voxel_size, positive=True),
        _check_free(free),
        max_distance,
    )
    run = choose('cast_rays', grid.device, cast_rays_reference)
    return RayHits(*run(*arguments))


def observed_cells(
    grid: torch.Tensor,
    origins: torch.Tensor,
    targets: torch.Tensor,
    lower: Sequence[float],
    voxel_size: Sequence[float],
    free: int = 17,
    through_occupied: bool = False,
) -> torch.Tensor:
    """Cells that at least one of the segments origin -> target crosses, the target's own cell included.

    Args:
        grid: (X, Y, Z) labels, uint8 (or bool, with ``free=0``).
        origins: (R, 3) or (3,) start points x, y, z in metres, inside or outside the grid.
        targets: (R, 3) or (3,) end points in metres, inside or outside the grid.
        lower: metres, lower corner of the grid (x, y, z).
        voxel_size: metres, size of a cell (x, y, z).
        free: the label that rays pass through.
        through_occupied: False: a segment ends in the first cell that is not free, which is marked as well. True: it
            goes on to its target whatever the labels.

    Returns:
        Tensor: (X, Y, Z) bool. Segments with NaN or infinity in them mark nothing.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.

    Not differentiable. Deterministic. CPU (threaded) and CUDA. Traversal and conventions as in ``cast_rays``.
    """
    grid = _label_grid(grid, '(X, Y, Z)', 3)
    origins, targets = _broadcast(
        _rays('origins', origins, grid.device), _rays('targets', targets, grid.device), ('origins', 'targets')
    )
    check_device(grid=grid, origins=origins, targets=targets)
    arguments = (
        grid,
        origins,
        targets,
        three_floats('lower', lower),
        three_floats('voxel_size', voxel_size, positive=True),
        _check_free(free),
        bool(through_occupied),
    )
    run = choose('observed_cells', grid.device, observed_cells_reference)
    return run(*arguments)


def _walk(grid_size, origins, directions, lower, voxel_size, t_end, visit):
    """The traversal for all rays side by side, one step at a time.

    ``visit(ray, cell, entry, exit)`` gets the numbers of the rays still under way and says which of them go on.
    Returns (R,) the parameter at which each walk ended, as ``walk_grid`` of the kernel does.
    """
    device = origins.device
    size = torch.tensor(grid_size, dtype=torch.float64, device=device)
    o = (origins - torch.tensor(lower, dtype=torch.float64, device=device)) / torch.tensor(
        voxel_size, dtype=torch.float64, device=device
    )
    d = directions / torch.tensor(voxel_size, dtype=torch.float64, device=device)
    inverse = 1.0 / d
    moves = inverse.isfinite()
    step = torch.where(moves, d.sign(), 0.0)
    valid = o.isfinite().all(1) & d.isfinite().all(1) & moves.any(1)

    upward = step > 0
    near = torch.where(moves, (torch.where(upward, 0.0, size) - o) * inverse, -_INF)
    far = torch.where(moves, (torch.where(upward, size, 0.0) - o) * inverse, _INF)
    nearest, face = near.max(1)  # the first of equal ones, as the kernel takes it
    entry = nearest.clamp(min=0.0)
    inside = (moves | ((o >= 0) & (o < size))).all(1)
    begun = valid & inside & (entry < far.amin(1)) & (entry <= t_end)
    ends = torch.where(valid, 0.0, torch.nan).to(torch.float64)

    at = torch.where(moves, o + entry[:, None] * d, o).floor()
    cell = torch.minimum(at.clamp(min=0.0), size - 1)
    on_face = (torch.arange(3, device=device) == face[:, None]) & (nearest > 0)[:, None]
    cell = torch.where(on_face, torch.where(upward, 0.0, size - 1), cell)

    ray = begun.nonzero()[:, 0]
    o, inverse, step, cell, t = o[ray], inverse[ray], step[ray], cell[ray], entry[ray]
    while ray.numel():
        following = torch.where(step == 0, _INF, (cell + (step > 0) - o) * inverse)
        x, y, z = following.unbind(1)
        axis = torch.where(x < y, torch.where(x < z, 0, 2), torch.where(y < z, 1, 2))
        leave = torch.maximum(following.gather(1, axis[:, None])[:, 0], t)
        going = visit(ray, cell.to(torch.int64), t, leave)
        ends[ray] = torch.where(going, leave.clamp(max=t_end), t)
        going = going & ~(leave > t_end)
        cell = cell.scatter_add(1, axis[:, None], step.gather(1, axis[:, None]))
        going = going & ((cell >= 0) & (cell < size)).all(1)
        ray, o, inverse, step, cell, t = (value[going] for value in (ray, o, inverse, step, cell, leave))
    return ends


def cast_rays_reference(grid, origins, directions, grid_index, lower, voxel_size, free, max_distance):
    """Plain-torch form of ``cast_rays`` (arguments checked by the caller; grid (G, X, Y, Z), all given)."""
    if bool(((grid_index < 0) | (grid_index >= grid.shape[0])).any()):
        raise ValueError(f'grid_index must be in 0..{grid.shape[0] - 1}')
    rays = origins.shape[0]
    label = torch.full((rays,), free, dtype=torch.uint8, device=grid.device)
    found = torch.full((rays, 3), -1, dtype=torch.int32, device=grid.device)
    entry = torch.full((rays,), _INF, dtype=torch.float64, device=grid.device)
    exit = torch.zeros(rays, dtype=torch.float64, device=grid.device)

    def visit(ray, cell, t_entry, t_exit):
        here = grid[grid_index[ray], cell[:, 0], cell[:, 1], cell[:, 2]]
        hit = here != free
        label[ray[hit]] = here[hit]
        found[ray[hit]] = cell[hit].to(torch.int32)
        entry[ray[hit]] = t_entry[hit]
        exit[ray[hit]] = t_exit[hit]
        return ~hit

    ends = _walk(grid.shape[1:], origins, directions, lower, voxel_size, max_distance, visit)
    missed = found[:, 0] < 0
    exit = torch.where(missed, ends, exit)
    return label, found, torch.where(exit.isnan(), exit, entry), exit


def observed_cells_reference(grid, origins, targets, lower, voxel_size, free, through_occupied):
    """Plain-torch form of ``observed_cells`` (arguments checked by the caller)."""
    seen = torch.zeros(grid.shape, dtype=torch.bool, device=grid.device)
    size = torch.tensor(grid.shape, dtype=torch.float64, device=grid.device)
    goal = (
        (targets - torch.tensor(lower, dtype=torch.float64, device=grid.device))
        / torch.tensor(voxel_size, dtype=torch.float64, device=grid.device)
    ).floor()
    inside = ((goal >= 0) & (goal < size)).all(1)
    goal = torch.where(inside[:, None], goal, -1.0).to(torch.int64)
    arrived = inside & origins.isfinite().all(1)

    def visit(ray, cell, t_entry, t_exit):
        seen[cell[:, 0], cell[:, 1], cell[:, 2]] = True
        at_goal = (cell == goal[ray]).all(1)
        blocked = grid[cell[:, 0], cell[:, 1], cell[:, 2]] != free
        if through_occupied:
            blocked = torch.zeros_like(blocked)
        arrived[ray[blocked & ~at_goal]] = False
        return ~(at_goal | blocked)

    _walk(grid.shape, origins, targets - origins, lower, voxel_size, 1.0, visit)
    goal = goal[arrived]
    seen[goal[:, 0], goal[:, 1], goal[:, 2]] = True
    return seen


if compiled('cast_rays'):

    @torch.library.register_fake('occforge::cast_rays')
    def _(grid, origins, directions, grid_index, lower, voxel_size, free, max_distance):
        rays = origins.shape[0]
        return (
            grid.new_empty(rays),
            grid.new_empty((rays, 3), dtype=torch.int32),
            origins.new_empty(rays),
            origins.new_empty(rays),
        )


if compiled('observed_cells'):

    @torch.library.register_fake('occforge::observed_cells')
    def _(grid, origins, targets, lower, voxel_size, free, through_occupied):
        return grid.new_empty(grid.shape, dtype=torch.bool)
