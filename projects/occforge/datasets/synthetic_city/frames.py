"""Writes the files of one scene: sweeps first, then frame by frame images, labels and what was seen of each object."""

import functools
import io
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from occforge.fileio import atomic_write

from . import labels, lidar
from .cameras import camera_pose, render, scaled_intrinsic
from .rig import Rig
from .world import KEYFRAME_STEP, SWEEP_STEP, SWEEPS, World

REACH = 80.0  # metres around the ego within which objects are annotated


class Job(NamedTuple):
    """One scene as the writers need it; picklable."""

    root: str
    version: str
    seed: int
    index: int
    keyframes: int
    right_hand: bool
    scene_name: str
    scene_token: str
    log_name: str
    start: int  # timestamp of the first key frame, microseconds
    image_size: tuple[int, int]
    rig: Rig
    camera_sweeps: int
    label_refine: int
    sample_tokens: tuple[str, ...]
    key_lidar_tokens: tuple[str, ...]  # sample_data tokens of the key sweeps

    @property
    def state(self) -> Path:
        return Path(self.root) / '.city'

    def timestamp(self, seconds) -> int:
        return self.start + round(seconds * 1e6)

    def lidar_file(self, number) -> str:
        folder = 'sweeps' if number % SWEEPS else 'samples'
        name = self.rig.lidar.name
        return f'{folder}/{name}/{self.log_name}__{name}__{self.timestamp(number * SWEEP_STEP)}.pcd.bin'

    def camera_shots(self, camera):
        """All pictures of a camera: (seconds, key frame, 0 for the key frame itself or number in between, path)."""
        shots = []
        for frame in range(self.keyframes):
            between = self.camera_sweeps if frame + 1 < self.keyframes else 0
            for number in range(between + 1):
                t = frame * KEYFRAME_STEP + number * KEYFRAME_STEP / (self.camera_sweeps + 1) + camera.delay
                folder = 'sweeps' if number else 'samples'
                name = f'{self.log_name}__{camera.name}__{self.timestamp(t)}.jpg'
                shots.append((t, frame, number, f'{folder}/{camera.name}/{name}'))
        return shots


@functools.lru_cache(maxsize=1)
def world_of(seed, index, keyframes, right_hand) -> World:
    """The last world is kept: a process mostly works on one scene at a time."""
    return World(seed, index, keyframes, right_hand)


def _world(job: Job) -> World:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return world_of(job.seed, job.index, job.keyframes, job.right_hand)


def write_sweeps(job: Job) -> None:
    """All LiDAR sweeps, lidarseg of the key sweeps, and what the scans of the scene have seen."""
    done = job.state / f'{job.scene_name}.npz'
    if done.exists():
        return
    world, root = _world(job), Path(job.root)
    seen = labels.Seen(world)
    for number in range((job.keyframes - 1) * SWEEPS + 1):
        moment = world.at(number * SWEEP_STEP)
        rng = np.random.default_rng([job.seed, job.index, 1, number])
        turn = lidar.sweep(world, moment, job.rig.lidar, rng)
        with atomic_write(root / job.lidar_file(number), durable=False) as file:
            file.write(turn.points.tobytes())
        pose = lidar.lidar_pose(job.rig.lidar, moment.ego)
        seen.add(turn.points[:, :3] @ pose[:3, :3].T + pose[:3, 3], turn.agents, moment)
        if number % SWEEPS == 0:
            token = job.key_lidar_tokens[number // SWEEPS]
            with atomic_write(root / 'lidarseg' / job.version / f'{token}_lidarseg.bin', durable=False) as file:
                file.write(turn.labels.tobytes())
    seen.close()
    _save(done, points=seen.points, agents=seen.agents, times=seen.times)


def write_frame(job: Job, frame: int) -> None:
    """Images, labels and observations of one key frame (and the camera sweeps after it)."""
    done = job.state / f'{job.scene_name}_{frame:04d}.json'
    if done.exists():
        return
    world, root = _world(job), Path(job.root)
    for number, camera in enumerate(job.rig.cameras):
        intrinsic = scaled_intrinsic(camera, job.rig.image_size, job.image_size)
        for t, key, between, path in job.camera_shots(camera):
            if key != frame:
                continue
            moment = world.at(t)
            rng = np.random.default_rng([job.seed, job.index, 2, frame, number, between])
            picture = render(world, moment, intrinsic, camera_pose(camera, moment.ego), job.image_size, rng)
            ok, data = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            if not ok:
                raise RuntimeError(f'{path}: OpenCV could not encode the image')
            with atomic_write(root / path, durable=False) as file:
                file.write(data.tobytes())
    time = frame * KEYFRAME_STEP
    moment = world.at(time)
    points = np.fromfile(root / job.lidar_file(frame * SWEEPS), np.float32).reshape(-1, 5)
    seen = load_seen(job, world)
    label = labels.semantics(world, moment, seen)
    back = np.linalg.inv(moment.ego)
    motion = [back @ world.ego.pose(time + camera.delay) for camera in job.rig.cameras]
    mask_lidar, mask_camera = labels.masks(label, job.rig, points[:, :3], motion)
    folder = root / 'gts' / job.scene_name / job.sample_tokens[frame]
    _save(folder / 'labels.npz', semantics=label, mask_lidar=mask_lidar, mask_camera=mask_camera)
    if job.label_refine > 1:
        fine = labels.semantics(world, moment, seen, job.label_refine)
        _save(folder / f'labels_{job.label_refine}x.npz', semantics=fine)
    with atomic_write(done, 'w', durable=False) as file:
        json.dump(observations(world, moment, job, points), file)


@functools.lru_cache(maxsize=1)
def _read_seen(path):
    with np.load(path) as data:
        return data['points'], data['agents'], data['times']


def load_seen(job: Job, world: World) -> labels.Seen:
    """What :func:`write_sweeps` stored."""
    return labels.Seen(world, *_read_seen(job.state / f'{job.scene_name}.npz'))


def observations(world: World, moment, job: Job, points) -> list:
    """Per annotated object [agent, LiDAR points in its box, visibility token '1'..'4']."""
    pose = lidar.lidar_pose(job.rig.lidar, moment.ego)
    at = points[:, :3].astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    boxes = world.boxes(moment.place)
    near = np.linalg.norm(boxes[:, :2] - moment.ego[:2, 3], axis=1) < REACH
    chosen = np.flatnonzero(world.boxed & near)
    share = visibility(world, moment, job, chosen)
    around = cKDTree(at[:, :2]).query_ball_point(boxes[chosen, :2], np.hypot(*boxes[chosen, 3:5].T) / 2 + 1e-6)
    out = []
    for agent, visible, nearby in zip(chosen, share, around):
        x, y, z, length, width, height, yaw = boxes[agent]
        d = at[nearby] - (x, y, z)
        c, s = np.cos(yaw), np.sin(yaw)
        inside = (
            (np.abs(c * d[:, 0] + s * d[:, 1]) <= length / 2)
            & (np.abs(c * d[:, 1] - s * d[:, 0]) <= width / 2)
            & (np.abs(d[:, 2]) <= height / 2)
        )
        count = int(inside.sum())
        if count or visible > 0:
            token = 1 + int(np.searchsorted([0.4, 0.6, 0.8], visible, side='left'))
            out.append([int(agent), count, str(token)])
    return out


def visibility(world: World, moment, job: Job, chosen) -> np.ndarray:
    """Share of an object that the cameras see: rays to 64 places in its box; those that pass it by do not count."""
    lattice = (np.arange(4) + 0.5) / 4 - 0.5
    grid = np.array(np.meshgrid(lattice, lattice, lattice, indexing='ij')).reshape(3, -1).T
    box = world.boxes(moment.place)[chosen]
    c, s = np.cos(box[:, 6])[:, None], np.sin(box[:, 6])[:, None]
    local = grid[None] * box[:, None, 3:6]
    x, y = c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1]
    places = np.stack([x, y, local[..., 2]], -1) + box[:, None, :3]
    owner = np.append(world.owner, -1)
    visible = np.zeros(places.shape[:2], bool)
    blocked = np.zeros(places.shape[:2], bool)
    w, h = job.rig.image_size
    for camera in job.rig.cameras:
        pose = camera_pose(camera, moment.ego)
        d = places - pose[:3, 3]
        p = d @ pose[:3, :3]
        depth = np.maximum(p[..., 2], 1e-6)
        u = camera.intrinsic[0, 0] * p[..., 0] / depth + camera.intrinsic[0, 2]
        v = camera.intrinsic[1, 1] * p[..., 1] / depth + camera.intrinsic[1, 2]
        rows, cols = np.nonzero((p[..., 2] > 0.2) & (u >= 0) & (u < w) & (v >= 0) & (v < h))
        if not len(rows):
            continue
        rays = torch.from_numpy(np.ascontiguousarray(d[rows, cols]))
        hits = moment.scene.cast(torch.from_numpy(pose[None, :3, 3].copy()), rays)
        primitive, distance = hits.primitive.numpy(), hits.distance.numpy()
        hit = primitive >= 0
        mine = hit & (owner[np.where(hit, primitive, -1)] == chosen[rows])
        visible[rows[mine], cols[mine]] = True
        other = hit & ~mine & (distance < 1)
        blocked[rows[other], cols[other]] = True
    # parts outside every picture count as not seen
    outside = ~visible & ~blocked
    count = visible.sum(1)
    total = count + (blocked & ~visible).sum(1)
    share = count / np.maximum(total, 1)
    inside_share = 1 - outside.mean(1)
    return np.where(inside_share > 0.5, share, share * np.minimum(2 * inside_share, 1))


def _save(path, **arrays):
    """numpy's compressed archive; its members carry a fixed date, so equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with atomic_write(path, durable=False) as file:
        file.write(buffer.getvalue())
