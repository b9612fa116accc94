"""Occ3D labels of the city from its true geometry.

A voxel is judged at sample points 0.1 m apart (4 x 4 x 4 in a voxel of 0.4 m).

* Objects are solid: a sample counts for an object when it is within 7 cm of one of its solids. The margin makes the
  test conservative (a flat face anywhere in the voxel is found) and covers the range noise of the scans that real
  labels are accumulated from.
* The ground is the sheet of the height field, sampled at 0.1 m over each column, 3 cm thick.
* An object (and each building's voxel, and each patch of ground) is only there if it was seen in the scene: hit by a
  LiDAR sweep or by the dense scan from the LiDAR's place at any key frame, as Occ3D only labels what its accumulated
  scans hit. Buildings are therefore shells on the seen sides, movable objects, poles and plants are whole.
* A voxel that holds several classes gets the object class with the most samples if that fills at least 1/10 of it,
  else the ground's most frequent class, else the object class. Small classes weigh more (see ``WEIGHT``).
"""

import numpy as np
import torch

from occforge.datasets.occ3d import FREE, GRID_SIZE, LIDARSEG_TO_OCC, POINT_CLOUD_RANGE, VOXEL_SIZE
from occforge.ops import observed_cells
from occforge.ops.scene_cast import BOX, CONE

from .cameras import camera_pose, pixel_rays
from .lidar import lidar_pose
from .objects import part_bounds
from .rig import Rig
from .world import Moment, World

MARGIN = 0.07  # metres around solids
SHEET = 0.03  # half thickness of the ground, metres
FILLED = 0.1  # share of a voxel from which on an object owns it
SEEN_CELL = 0.4  # metres, world grid of what was seen
MASK_RAYS = (240, 135)  # camera rays for the camera mask, across and down, through the centres of equal blocks
WEIGHT = np.ones(18)  # of a class's samples against those of other objects
WEIGHT[[2, 6, 7, 8]] = 2.0  # bicycle, motorcycle, pedestrian, traffic cone


class Seen:
    """What the scans of a scene have hit: a world grid of cells, and agents."""

    def __init__(self, world: World):
        self.lower = np.append(world.layout.lower, -4.0)
        self.size = tuple(int(n) for n in np.ceil(np.append(world.layout.extent, 24.0) / SEEN_CELL))
        self.cells = np.zeros(self.size, bool)
        self.agents = np.zeros(len(world.agents), bool)

    def add(self, points, agents):
        """points (N, 3) scene metres, agents (N,), -1 for the ground."""
        index = np.floor((points - self.lower) / SEEN_CELL).astype(np.int64)
        inside = ((index >= 0) & (index < self.size)).all(1)
        flat = np.ravel_multi_index(tuple(index[inside].T), self.size)
        self.cells.reshape(-1)[flat] = True
        self.agents[agents[agents >= 0]] = True

    def spread(self):
        """Also count the neighbours of every hit cell (26 of them) as seen, so that sparse rows leave no holes."""
        grown = self.cells
        for axis in range(3):
            moved = grown.copy()
            low, high = [slice(None)] * 3, [slice(None)] * 3
            low[axis], high[axis] = slice(1, None), slice(None, -1)
            moved[tuple(low)] |= grown[tuple(high)]
            moved[tuple(high)] |= grown[tuple(low)]
            grown = moved
        self.cells = grown

    def at(self, points):
        index = np.floor((points - self.lower) / SEEN_CELL).astype(np.int64)
        inside = ((index >= 0) & (index < self.size)).all(-1)
        index[~inside] = 0
        return self.cells[index[..., 0], index[..., 1], index[..., 2]] & inside


def semantics(world: World, moment: Moment, seen: Seen, refine: int = 1) -> np.ndarray:
    """(X, Y, Z) * refine uint8 labels in the ego frame of the moment; 17 = free. ``refine`` 2 or 4: finer voxels."""
    shape = tuple(n * refine for n in GRID_SIZE)
    voxel = VOXEL_SIZE[0] / refine
    per = max(4 // refine, 1)  # samples along a voxel's edge
    pitch = voxel / per
    lower = np.array(POINT_CLOUD_RANGE[:3])
    margin = 0.5 * pitch + 0.02
    ground = _ground_votes(world, moment, seen, shape, voxel, lower)
    objects = _object_votes(world, moment, seen, shape, voxel, lower, per, margin)
    label = np.full(int(np.prod(shape)), FREE, np.uint8)
    for votes, least in ((objects, 0.0), (ground, 0.0), (objects, FILLED * per**3)):
        cell, cls, count = votes
        keep = count >= max(least, 1e-9)
        label[cell[keep]] = cls[keep]
    return label.reshape(shape)


def _winners(flat, cells_classes, weight=None):
    """Most voted class of every cell: flat = cell * 18 + class -> cells, classes, number of votes."""
    key, count = np.unique(flat, return_counts=True) if cells_classes is None else cells_classes
    cell, cls = key // 18, key % 18
    rank = count * (1.0 if weight is None else weight[cls])
    order = np.lexsort((cls, rank, cell))
    cell, cls, rank = cell[order], cls[order], rank[order]
    last = np.append(cell[1:] != cell[:-1], True) if len(cell) else np.zeros(0, bool)
    return cell[last], cls[last].astype(np.uint8), rank[last]


def _ground_votes(world, moment, seen, shape, voxel, lower):
    pitch = min(0.1, voxel)
    nx, ny = (round(n * voxel / pitch) for n in shape[:2])
    x = lower[0] + pitch * (np.arange(nx) + 0.5)
    y = lower[1] + pitch * (np.arange(ny) + 0.5)
    px, py = (g.ravel() for g in np.meshgrid(x, y, indexing='ij'))
    ego, layout = moment.ego, world.layout
    z = np.zeros(len(px))
    for _ in range(2):  # the sheet's height above the ego's tilted floor
        xy = np.stack([ego[k, 0] * px + ego[k, 1] * py + ego[k, 2] * z + ego[k, 3] for k in range(2)], 1)
        surface = layout.height_at(xy)
        z += (surface - (ego[2, 0] * px + ego[2, 1] * py + ego[2, 2] * z + ego[2, 3])) / ego[2, 2]
    inside = ((xy >= layout.lower) & (xy < layout.lower + layout.extent)).all(1)
    inside &= seen.at(np.column_stack([xy, surface]))
    labels = LIDARSEG_TO_OCC[layout.label_at(xy)].astype(np.int64)
    z = z.reshape(nx, ny)
    low, high = z.copy(), z.copy()  # the sheet between neighbouring samples: kerbs are closed
    for axis in range(2):
        for shift in (1, -1):
            near = np.roll(z, shift, axis)
            low, high = np.minimum(low, (near + z) / 2), np.maximum(high, (near + z) / 2)
    bottom = np.floor((low.ravel() - SHEET - lower[2]) / voxel).astype(np.int64)
    top = np.floor((high.ravel() + SHEET - lower[2]) / voxel).astype(np.int64)
    per = max(round(voxel / pitch), 1)
    column = (np.arange(nx) // per)[:, None] * shape[1] + (np.arange(ny) // per)[None]
    column = column.ravel()
    flat = []
    for level in range(int((top - bottom).max()) + 1):
        k = bottom + level
        ok = inside & (k <= top) & (k >= 0) & (k < shape[2])
        flat.append((column[ok] * shape[2] + k[ok]) * 18 + labels[ok])
    return _winners(np.concatenate(flat), None)


def _object_votes(world, moment, seen, shape, voxel, lower, per, margin):
    rows = moment.rows
    inverse = np.linalg.inv(moment.ego)
    centre = rows[:, 1:4] @ inverse[:3, :3].T + inverse[:3, 3]
    turn = np.einsum('ij,pkj->pik', inverse[:3, :3], rows[:, 4:13].reshape(-1, 3, 3))  # part to ego
    kind, half, top, shift = rows[:, 0].astype(int), rows[:, 13:16], rows[:, 16:18], rows[:, 18]
    low, high = part_bounds(kind, centre, turn, half, top, shift)
    upper = lower + np.array(shape) * voxel
    near = ((high + margin > lower) & (low - margin < upper)).all(1) & seen.agents[world.owner]
    classes = LIDARSEG_TO_OCC[world.label]
    offset = (np.arange(per) + 0.5) * (voxel / per)
    cells, votes = [], []
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    for p in np.flatnonzero(near):
        first = np.maximum(np.floor((low[p] - margin - lower) / voxel), 0).astype(int)
        last = np.minimum(np.floor((high[p] + margin - lower) / voxel), np.array(shape) - 1).astype(int)
        if (last < first).any():
            continue
        axes = [
            (lower[k] + (np.arange(first[k], last[k] + 1) * voxel)[:, None] + offset - centre[p, k]).astype(np.float32)
            for k in range(3)
        ]
        inside = _inside(turn[p], kind[p], half[p], top[p], shift[p], margin, *(a.ravel() for a in axes))
        number = [len(a) for a in axes]
        count = inside.reshape(number[0], per, number[1], per, number[2], per).sum((1, 3, 5))
        i, j, k = np.nonzero(count)
        cell = (i + first[0]) * strides[0] + (j + first[1]) * strides[1] + (k + first[2])
        if not world.solid[world.owner[p]]:  # the seen shell of buildings
            middle = lower + (np.stack([i, j, k], 1) + first + 0.5) * voxel
            visible = seen.at(middle @ moment.ego[:3, :3].T + moment.ego[:3, 3])
            i, j, k, cell = i[visible], j[visible], k[visible], cell[visible]
        cells.append(cell * 18 + int(classes[world.owner[p]]))
        votes.append(count[i, j, k])
    if not cells:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0)
    key, index = np.unique(np.concatenate(cells), return_inverse=True)
    # solids of an object overlap: more samples than a voxel has are no more than full
    total = np.minimum(np.bincount(index, np.concatenate(votes)), per**3)
    return _winners(None, (key, total), WEIGHT)


def _inside(turn, kind, half, top, shift, margin, x, y, z):
    """Which points of the lattice x, y, z (ego axes, about the centre) are within ``margin`` of the solid."""
    turn, half, top = turn.astype(np.float32), half.astype(np.float32), top.astype(np.float32)
    shift, margin = np.float32(shift), np.float32(margin)
    local = [
        turn[0, k] * x[:, None, None] + turn[1, k] * y[None, :, None] + turn[2, k] * z[None, None, :] for k in range(3)
    ]
    a, b, c = half
    if kind == BOX:
        u = np.clip((local[2] + c) / (2 * c), 0, 1)
        wide, deep = a * (1 - (1 - top[0]) * u), b * (1 - (1 - top[1]) * u)
        dx = np.abs(local[0] - shift * u) - wide
        dy = np.abs(local[1]) - deep
        dz = np.abs(local[2]) - c
    elif kind == CONE:
        u = np.clip((local[2] + c) / (2 * c), 0, 1)
        dx = np.sqrt(local[0] ** 2 + local[1] ** 2) - (a + (b - a) * u)
        dy = dz = np.abs(local[2]) - c
    else:
        return sum((local[k] / (half[k] + margin)) ** 2 for k in range(3)) <= 1
    return (dx <= margin) & (dy <= margin) & (dz <= margin)


def masks(label: np.ndarray, rig: Rig, lidar_points, cameras) -> tuple[np.ndarray, np.ndarray]:
    """What the sensors observe in a label grid.

    Args:
        label: (X, Y, Z) uint8 at Occ3D's resolution.
        rig: the sensors.
        lidar_points: (N, 3) points of the key sweep in its sensor frame, as written.
        cameras: per camera of the rig the (4, 4) ego frame at the camera's time to ego frame of the labels.

    Returns:
        mask_lidar: (X, Y, Z) uint8, cells that a segment from the LiDAR to one of its points crosses, the point's
        own cell included.
        mask_camera: (X, Y, Z) uint8, cells that a camera ray crosses up to and including its first occupied cell;
        240 x 135 rays a camera, through the centres of equal blocks of the image.
    """
    grid = torch.from_numpy(np.ascontiguousarray(label))
    lower = POINT_CLOUD_RANGE[:3]
    at = lidar_pose(rig.lidar, np.eye(4))
    targets = np.asarray(lidar_points, np.float64) @ at[:3, :3].T + at[:3, 3]
    origin = torch.from_numpy(at[:3, 3].copy())
    by_lidar = observed_cells(grid, origin, torch.from_numpy(targets), lower, VOXEL_SIZE, FREE, True)
    by_camera = torch.zeros_like(by_lidar)
    for camera, motion in zip(rig.cameras, cameras):
        pose = camera_pose(camera, motion)
        ends = camera_rays(camera, rig.image_size, pose) * 200.0 + pose[:3, 3]
        origin = torch.from_numpy(pose[:3, 3].copy())
        by_camera |= observed_cells(grid, origin, torch.from_numpy(ends), lower, VOXEL_SIZE, FREE, False)
    return by_lidar.numpy().astype(np.uint8), by_camera.numpy().astype(np.uint8)


def camera_rays(camera, image_size, pose) -> np.ndarray:
    """(240 * 135, 3) directions of the rays of the camera mask in the frame that ``pose`` leads to."""
    across, down = MASK_RAYS
    u = (np.arange(across) + 0.5) * image_size[0] / across
    v = (np.arange(down) + 0.5) * image_size[1] / down
    grid_u, grid_v = np.meshgrid(u, v)
    return pixel_rays(camera.intrinsic, pose, np.stack([grid_u.ravel(), grid_v.ravel()], 1))
