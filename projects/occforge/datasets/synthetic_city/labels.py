"""Occ3D labels of the city from its true geometry.

A voxel is judged at sample points 0.1 m apart (4 x 4 x 4 in a voxel of 0.4 m).

* Objects are their surfaces: a sample counts for an object when it is at most 7 cm outside and 10 cm inside of one of
  its solids. The outer margin makes the test conservative (a flat face anywhere in the voxel is found) and covers the
  range noise of the scans that real labels are accumulated from.
* The ground is the sheet of the height field, sampled at 0.1 m over each column, 3 cm thick.
* A surface is only there where the LiDAR hit it in the ``SEEN_BEFORE`` seconds up to the moment, as Occ3D labels what
  its accumulated scans hit: the far sides, the inside and the back yards that no sweep reached are free. An object's
  voxel was itself hit; the ground, whose rings lie metres apart, is closed to the voxels around a hit. Hits on moving
  objects move with them. (Occ3D accumulates whole scenes. More than a third of such labels is first seen after the
  moment, and a model can but guess it; here all that is labelled had been seen by then, so that a score without a mask
  says how well a model perceives.)
* A voxel that holds several classes gets the object class with the most samples if that fills at least 1/10 of it,
  else the ground's most frequent class, else the object class. Small classes weigh more (see ``WEIGHT``).
"""

import numpy as np
import torch
from scipy import ndimage

from occforge.datasets.occ3d import FREE, GRID_SIZE, LIDARSEG_TO_OCC, POINT_CLOUD_RANGE, VOXEL_SIZE
from occforge.ops import observed_cells
from occforge.ops.scene_cast import BOX, CONE, ELLIPSOID

from .cameras import camera_pose, pixel_rays
from .lidar import lidar_pose
from .objects import part_bounds
from .rig import Rig
from .world import KEYFRAME_STEP, Moment, World

MARGIN = 0.07  # metres around solids
SKIN = 0.1  # metres into solids
SHEET = 0.03  # half thickness of the ground, metres
FILLED = 0.1  # share of a voxel from which on an object owns it
SEEN_BEFORE = 3.5  # seconds before a key frame whose sweeps make its labels
HIT_CELL = 0.05  # metres; hits closer together than this are kept once
CHUNK = 2048  # voxels judged at a time
MASK_RAYS = (240, 135)  # camera rays for the camera mask, across and down, through the centres of equal blocks
WEIGHT = np.ones(18)  # of a class's samples against those of other objects
WEIGHT[[2, 6, 7, 8]] = 2.0  # bicycle, motorcycle, pedestrian, traffic cone


class Seen:
    """Where the sweeps of a scene hit its surfaces: hits on moving agents in the agent's frame, all others in the
    scene's.

    Attributes:
        points: (N, 3) float32 metres.
        agents: (N,) int32 owner of the surface, -1 for the ground.
        times: (N,) float32 time of the sweep's key frame interval, seconds.
    """

    _BITS, _OFFSET = 16, 1 << 15  # of a cell's coordinate in a key

    def __init__(self, world: World, points=None, agents=None, times=None):
        self.world, self.points, self.agents, self.times = world, points, agents, times
        self._kept = {}  # interval -> [(keys, points)]

    def add(self, points, agents, moment: Moment):
        """A sweep of that moment: points (N, 3) as measured, scene metres, agents (N,), -1 for the ground."""
        own = self._to_own(points, agents, moment.place)
        cell = np.floor(own / HIT_CELL).astype(np.int64) + self._OFFSET
        key = agents.astype(np.int64) + 1
        for axis in range(3):
            key = (key << self._BITS) | cell[:, axis]
        key, first = np.unique(key, return_index=True)
        # kept once per half second: a sweep counts from the end of its interval on
        interval = KEYFRAME_STEP * np.ceil(moment.time / KEYFRAME_STEP - 1e-6)
        self._kept.setdefault(interval, []).append((key, own[first].astype(np.float32)))

    def close(self):
        """Put the added sweeps together."""
        keys, points, times = [], [], []
        for interval, sweeps in self._kept.items():
            key, first = np.unique(np.concatenate([key for key, _ in sweeps]), return_index=True)
            keys.append(key)
            points.append(np.concatenate([own for _, own in sweeps])[first])
            times.append(np.full(len(key), interval, np.float32))
        self.points, self.times = np.concatenate(points), np.concatenate(times)
        self.agents = (np.concatenate(keys) >> 3 * self._BITS).astype(np.int32) - 1

    def voxels(self, moment: Moment) -> tuple[np.ndarray, np.ndarray]:
        """(X, Y, Z) bool each: voxels within one of a hit on the ground, and voxels of hits on objects."""
        age = moment.time - self.times
        near = (age < SEEN_BEFORE + 0.01) & (age > -0.01)
        agents, points = self.agents[near], self.points[near].astype(np.float64)
        moving = agents >= self.world.still
        x, y, z, yaw = moment.place[agents[moving]].T
        c, s = np.cos(yaw), np.sin(yaw)
        u, v, w = points[moving].T
        points[moving] = np.stack([x + c * u - s * v, y + s * u + c * v, z + w], 1)
        back = np.linalg.inv(moment.ego)
        points = points @ back[:3, :3].T + back[:3, 3]
        index = np.floor((points - POINT_CLOUD_RANGE[:3]) / VOXEL_SIZE).astype(np.int64)
        inside = ((index >= 0) & (index < GRID_SIZE)).all(1)
        on_ground, on_objects = (np.zeros(GRID_SIZE, bool) for _ in range(2))
        on_ground[tuple(index[inside & (agents < 0)].T)] = True
        on_objects[tuple(index[inside & (agents >= 0)].T)] = True
        return ndimage.binary_dilation(on_ground, np.ones((3, 3, 3))), on_objects

    def _to_own(self, points, agents, place):
        moving = agents >= self.world.still
        x, y, z, yaw = place[agents[moving]].T
        c, s = np.cos(yaw), np.sin(yaw)
        dx, dy, dz = points[moving, 0] - x, points[moving, 1] - y, points[moving, 2] - z
        own = points.copy()
        own[moving] = np.stack([c * dx + s * dy, c * dy - s * dx, dz], 1)
        return own


def semantics(world: World, moment: Moment, seen: Seen, refine: int = 1) -> np.ndarray:
    """(X, Y, Z) * refine uint8 labels in the ego frame of the moment; 17 = free. ``refine`` 2 or 4: finer voxels."""
    shape = tuple(n * refine for n in GRID_SIZE)
    voxel = VOXEL_SIZE[0] / refine
    per = max(4 // refine, 1)  # samples along a voxel's edge
    pitch = voxel / per
    lower = np.array(POINT_CLOUD_RANGE[:3])
    margin = 0.5 * pitch + 0.02
    seen_ground, seen_objects = (
        np.kron(grid, np.ones((refine, refine, refine), bool)) if refine > 1 else grid for grid in seen.voxels(moment)
    )
    ground = _ground_votes(world, moment, seen_ground, voxel, lower)
    objects = _object_votes(world, moment, seen_objects, voxel, lower, per, margin)
    label = np.full(int(np.prod(shape)), FREE, np.uint8)
    for votes, least in ((objects, 0.0), (ground, 0.0), (objects, FILLED * per**3)):
        cell, cls, count = votes
        keep = count >= max(least, 1e-9)
        label[cell[keep]] = cls[keep]
    return label.reshape(shape)


def _winners(key, count, weight=None):
    """Most voted class of every cell: votes by key = cell * 18 + class -> cells, classes, (weighted) votes."""
    cell, cls = key // 18, key % 18
    rank = count * (1.0 if weight is None else weight[cls])
    order = np.lexsort((cls, rank, cell))
    cell, cls, rank = cell[order], cls[order], rank[order]
    last = np.append(cell[1:] != cell[:-1], True) if len(cell) else np.zeros(0, bool)
    return cell[last], cls[last].astype(np.uint8), rank[last]


def _ground_votes(world, moment, seen, voxel, lower):
    """Cells, classes and numbers of samples of the ground in the ``seen`` (X, Y, Z) voxels."""
    shape, layout, ego = seen.shape, world.layout, moment.ego
    pitch = min(0.1, voxel)
    per = max(round(voxel / pitch), 1)
    nx, ny = shape[0] * per, shape[1] * per
    wanted = np.kron(seen.any(2), np.ones((per, per), bool))
    # kerbs are closed with the samples on all four sides
    known = np.flatnonzero(wanted | np.any([np.roll(wanted, shift, axis) for axis in (0, 1) for shift in (1, -1)], 0))
    px, py = lower[0] + pitch * (known // ny + 0.5), lower[1] + pitch * (known % ny + 0.5)
    z = np.zeros(len(known))
    for _ in range(2):  # the sheet's height above the ego's tilted floor
        xy = np.stack([ego[k, 0] * px + ego[k, 1] * py + ego[k, 2] * z + ego[k, 3] for k in range(2)], 1)
        surface = layout.height_at(xy)
        z += (surface - (ego[2, 0] * px + ego[2, 1] * py + ego[2, 2] * z + ego[2, 3])) / ego[2, 2]
    sheet = np.zeros((nx, ny))
    sheet.ravel()[known] = z
    low, high = sheet.copy(), sheet.copy()  # the sheet between neighbouring samples
    for axis in range(2):
        for shift in (1, -1):
            near = np.roll(sheet, shift, axis)
            low, high = np.minimum(low, (near + sheet) / 2), np.maximum(high, (near + sheet) / 2)
    inside = ((xy >= layout.lower) & (xy < layout.lower + layout.extent)).all(1) & wanted.ravel()[known]
    known = known[inside]
    labels = LIDARSEG_TO_OCC[layout.label_at(xy[inside])].astype(np.int64)
    bottom = np.floor((low.ravel()[known] - SHEET - lower[2]) / voxel).astype(np.int64)
    top = np.floor((high.ravel()[known] + SHEET - lower[2]) / voxel).astype(np.int64)
    column = known // ny // per * shape[1] + known % ny // per
    flat = [np.zeros(0, np.int64)]
    for level in range(int((top - bottom).max(initial=-1)) + 1):
        k = bottom + level
        ok = np.flatnonzero((k <= top) & (k >= 0) & (k < shape[2]))
        cell = column[ok] * shape[2] + k[ok]
        keep = seen.ravel()[cell]
        flat.append(cell[keep] * 18 + labels[ok[keep]])
    return _winners(*np.unique(np.concatenate(flat), return_counts=True))


def _object_votes(world, moment, seen, voxel, lower, per, margin):
    """Cells, classes and weighted numbers of samples of the objects in the ``seen`` (X, Y, Z) voxels."""
    shape, rows = np.array(seen.shape), moment.rows
    inverse = np.linalg.inv(moment.ego)
    centre = rows[:, 1:4] @ inverse[:3, :3].T + inverse[:3, 3]
    turn = np.einsum('ij,pkj->pik', inverse[:3, :3], rows[:, 4:13].reshape(-1, 3, 3))  # part to ego
    kind, half, top, shift = rows[:, 0].astype(int), rows[:, 13:16], rows[:, 16:18], rows[:, 18]
    low, high = part_bounds(kind, centre, turn, half, top, shift)
    upper = lower + shape * voxel
    near = ((high + margin > lower) & (low - margin < upper)).all(1)
    first = np.maximum(np.floor((low - margin - lower) / voxel), 0).astype(int)
    last = np.minimum(np.floor((high + margin - lower) / voxel), shape - 1).astype(int)
    parts, voxels = [], []  # which part may reach into which seen voxel
    for p in np.flatnonzero(near):
        index = np.argwhere(seen[tuple(slice(a, b + 1) for a, b in zip(first[p], last[p]))]) + first[p]
        parts.append(np.full(len(index), p))
        voxels.append(index)
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0)
    parts, voxels = np.concatenate(parts), np.concatenate(voxels)
    offset = (np.arange(per) + 0.5) * (voxel / per)
    thick = half.min(1) > SKIN
    solids = [table.astype(np.float32) for table in (turn, half, top, shift)]
    count = np.zeros(len(parts), np.int64)
    for type_ in (BOX, CONE, ELLIPSOID):
        of_type = np.flatnonzero(kind[parts] == type_)
        for begin in range(0, len(of_type), CHUNK):
            pairs = of_type[begin : begin + CHUNK]
            part = parts[pairs]
            axes = [
                ((lower[k] + voxels[pairs, k] * voxel)[:, None] + offset - centre[part, k, None]).astype(np.float32)
                for k in range(3)
            ]
            inside = _inside(type_, *(table[part] for table in solids), margin, *axes)
            core = np.flatnonzero(thick[part])
            part = part[core]
            inside[core] &= ~_inside(type_, *(table[part] for table in solids), -SKIN, *(x[core] for x in axes))
            count[pairs] = inside.sum((1, 2, 3))
    cell = np.ravel_multi_index(tuple(voxels.T), seen.shape)
    classes = LIDARSEG_TO_OCC[world.label][world.owner[parts]].astype(np.int64)
    key, index = np.unique((cell * 18 + classes)[count > 0], return_inverse=True)
    # solids of an object overlap: more samples than a voxel has are no more than full
    return _winners(key, np.minimum(np.bincount(index, count[count > 0]), per**3), WEIGHT)


def _inside(kind, turn, half, top, shift, margin, x, y, z):
    """Which samples of N voxels are within ``margin`` of a solid each.

    Args:
        kind: of all solids.
        turn, half, top, shift: (N, 3, 3), (N, 3), (N, 2), (N,) float32 of the solids.
        x, y, z: (N, S) float32 samples along the voxels' edges (ego axes, about the solid's centre).

    Returns:
        (N, S, S, S) bool.
    """
    x, y, z = x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]
    turn, half, top = (np.moveaxis(table, 0, -1)[..., None, None, None] for table in (turn, half, top))
    shift, margin = shift[:, None, None, None], np.float32(margin)
    local = [turn[0, k] * x + turn[1, k] * y + turn[2, k] * z for k in range(3)]
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
