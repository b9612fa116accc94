"""Turns of the spinning LiDAR: ranges with noise, intensity, rings, drop-out.

A turn is a snapshot: all rays start at one pose, and the points are written in the sensor's frame at the sweep's
timestamp, as nuScenes' motion-compensated sweeps are. Intensity (0..255) falls with distance and slant and depends
on the material and, as much, on the single thing, so that the classes overlap widely.
"""

from typing import NamedTuple

import numpy as np
import torch

from .rig import Lidar, quaternion_matrix
from .textures import atlas
from .world import Moment, World


class Sweep(NamedTuple):
    points: np.ndarray  # (N, 5) float32: x, y, z (sensor frame, metres), intensity 0..255, ring
    labels: np.ndarray  # (N,) uint8 lidarseg labels
    agents: np.ndarray  # (N,) int32 agent that was hit, -1 for the ground
    exact: np.ndarray  # (N, 3) float64 hits without noise, scene frame


def lidar_pose(lidar: Lidar, ego: np.ndarray) -> np.ndarray:
    """(4, 4) LiDAR to scene."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = quaternion_matrix(lidar.rotation), lidar.translation
    return ego @ pose


def directions(lidar: Lidar) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions (columns x beams, 3) in the sensor's frame, firing by firing, clockwise; ring of each."""
    azimuth = np.pi - 2 * np.pi * (np.arange(lidar.columns) + 0.5) / lidar.columns
    elevation = np.radians(lidar.elevations)
    out = np.empty((lidar.columns, len(elevation), 3))
    out[..., 0] = np.cos(azimuth)[:, None] * np.cos(elevation)
    out[..., 1] = np.sin(azimuth)[:, None] * np.cos(elevation)
    out[..., 2] = np.sin(elevation)
    ring = np.tile(np.arange(len(elevation), dtype=np.float32), lidar.columns)
    return out.reshape(-1, 3), ring


def sweep(world: World, moment: Moment, lidar: Lidar, rng) -> Sweep:
    """One turn at the moment's time."""
    pose = lidar_pose(lidar, moment.ego)
    local, ring = directions(lidar)
    local = local + rng.normal(0, 2e-4, local.shape)  # the firing pattern is never quite the same
    local /= np.sqrt((local * local).sum(1))[:, None]
    rays = _turn(pose[:3, :3], local)
    hits = moment.scene.cast(torch.from_numpy(pose[None, :3, 3].copy()), torch.from_numpy(rays), far=lidar.max_range)
    primitive = hits.primitive.numpy()
    keep = np.flatnonzero(primitive >= 0)
    primitive, distance = primitive[keep], hits.distance.numpy()[keep]
    normal, uv, face = hits.normal.numpy()[keep], hits.uv.numpy()[keep], hits.face.numpy()[keep]
    rays, local, ring = rays[keep], local[keep], ring[keep]
    row = world.surface_rows(primitive, uv)
    slant = np.abs((rays * normal).sum(1))
    book = atlas()
    group = np.array([0, 0, 1, 1, 2, 2])[face]
    material = world.material[row, group]
    reflect = (0.15 + 0.5 * book.intensity[material]) * world.reflectance[row] * rng.lognormal(0, 0.3, len(row))
    power = reflect * (0.35 + 0.65 * slant) * np.exp(-distance / 70)
    intensity = np.clip(np.rint(power * 160 * (1 - 0.5 * book.gloss[material])), 0, 255)
    lost = 0.02 + 0.1 * book.gloss[material] + 0.35 * (distance / lidar.max_range) ** 2 + 0.25 * (slant < 0.03)
    spread = lidar.noise * np.minimum(0.35 + distance / 30, 1)  # echoes from near by are sharper
    noisy = distance + rng.standard_normal(len(row)) * spread
    stay = np.flatnonzero((rng.random(len(row)) > lost) & (noisy > 0.5))
    points = np.empty((len(stay), 5), np.float32)
    points[:, :3] = local[stay] * noisy[stay, None]
    points[:, 3], points[:, 4] = intensity[stay], ring[stay]
    owner = np.append(world.owner, -1).astype(np.int32)
    exact = pose[:3, 3] + rays[stay] * distance[stay, None]
    return Sweep(points, world.surface_label[row[stay]], owner[primitive[stay]], exact)


def _turn(rotation, vectors):
    return np.stack([(vectors * rotation[k]).sum(1) for k in range(3)], 1)
