"""Writes rooms as ScanNet's exports."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from occforge.fileio import atomic_write

from .. import scannet_classes
from ..preparation.progress import parallel_map
from ..rgbd import backproject
from ..transforms.scannet import INTRINSICS
from .room import Room, make_room

SIZE = (640, 480)
STEP = 40  # raw frames between two that are written
_NYU40 = dict(zip(scannet_classes.SCANNET_CLASSES, scannet_classes.SCANNET_IDS))
_RAW200 = dict(zip(scannet_classes.SCANNET200_CLASSES, scannet_classes.SCANNET200_IDS))
# raw_category -> names among the 20 and the 200 classes
CATEGORIES = dict(
    wall=('wall', 'wall'),
    floor=('floor', 'floor'),
    cabinet=('cabinet', 'cabinet'),
    picture=('picture', 'picture'),
    table=('table', 'table'),
    desk=('desk', 'desk'),
    chair=('chair', 'chair'),
    sofa=('sofa', 'couch'),
    bed=('bed', 'bed'),
    box=('otherfurniture', 'box'),
)


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pose (4, 4), camera to world, of a camera at ``eye``: z towards ``target``, x right, y down."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


def trajectory(room: Room, frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Poses of a camera that walks around the middle of the room and looks across it."""
    start, turns = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.2)
    x, y, _ = room.size
    poses = []
    for i in range(frames):
        angle = start + turns * 2 * np.pi * i / frames
        away = np.array([np.cos(angle), np.sin(angle)])
        eye = np.array([*(away * [x * 0.3, y * 0.3]), 1.5 + 0.1 * np.sin(3 * angle)])
        target = np.array([*(-away * [x * 0.35, y * 0.35]), rng.uniform(0.5, 0.9)])
        poses.append(look_at(eye, target))
    return poses


def render(room: Room, scene, pose: np.ndarray, intrinsics, size=SIZE):
    """Depth (H, W) metres along z (0: nothing), colour (H, W, 3) 0..255, part (H, W) or -1, face (H, W)."""
    width, height = size
    fx, fy, cx, cy = intrinsics
    v, u = np.indices((height, width))
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u, dtype=np.float64)], -1).reshape(-1, 3)
    directions = torch.from_numpy(rays @ pose[:3, :3].T)
    hits = scene.cast(torch.from_numpy(pose[None, :3, 3].copy()), directions, near=1e-3)
    part = hits.primitive.numpy().reshape(height, width)
    depth = np.where(part >= 0, hits.distance.numpy().reshape(height, width), 0.0)  # the rays have z = 1
    normal, uv, face = (x.numpy().reshape(height, width, -1) for x in (hits.normal, hits.uv, hits.face))
    colour = np.full((height, width, 3), 30.0)
    light = np.array([0.3, 0.5, 0.8]) / np.linalg.norm([0.3, 0.5, 0.8])
    shade = 0.7 + 0.3 * np.abs(normal @ light)
    for number in np.unique(part[part >= 0]):
        inside, look = part == number, room.parts[number]
        a, b = (np.floor(uv[inside] / look.period).astype(int) % 2).T
        within = uv[inside] / look.period % 1 - 0.5
        second = dict(
            plain=np.zeros(len(a), bool),
            stripes=a == 1,
            bands=b == 1,
            checks=a != b,
            dots=(within**2).sum(1) < 0.09,
        )[look.pattern]
        colour[inside] = np.where(second[:, None], look.colours[1], look.colours[0])
    return depth, colour * shade[..., None], part, face[..., 0]


def segment_labels(room: Room, part: np.ndarray, face: np.ndarray) -> np.ndarray:
    """(H, W) uint16, what a segmentation of the image would say: a region for each side of each part, 0 on borders."""
    region = (part + 1) * 8 + np.where(part >= 0, face, 0)
    border = np.zeros(region.shape, dtype=bool)
    border[:-1] |= region[:-1] != region[1:]
    border[:, :-1] |= region[:, :-1] != region[:, 1:]
    labels = np.unique(region, return_inverse=True)[1].reshape(region.shape) + 1
    return np.where(border | (part < 0), 0, labels).astype(np.uint16)


def write_mesh(folder: Path, scene: str, room: Room, xyz, colour, part, face) -> None:
    """Points on the surfaces as the vertices of a mesh, with segments and objects in ScanNet's files."""
    cell = np.floor(xyz / 0.04).astype(np.int64)
    _, first = np.unique(np.column_stack([cell, part]), axis=0, return_index=True)
    xyz, colour, part, face = xyz[first], colour[first], part[first], face[first]
    patch = np.floor(xyz / 0.5).astype(np.int64)
    segments = np.unique(np.column_stack([patch, part, face]), axis=0, return_inverse=True)[1].reshape(-1)
    instance = np.array([each.instance for each in room.parts])[part]
    groups = [
        dict(id=i, objectId=i, label=category, segments=np.unique(segments[instance == i + 1]).tolist())
        for i, category in enumerate(room.categories)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    fields = [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('red', 'u1'), ('green', 'u1'), ('blue', 'u1'), ('alpha', 'u1')]
    vertices = np.zeros(len(xyz), dtype=fields)
    for i, name in enumerate('xyz'):
        vertices[name] = xyz[:, i]
    for i, name in enumerate(('red', 'green', 'blue')):
        vertices[name] = np.clip(colour[:, i], 0, 255)
    vertices['alpha'] = 255
    kinds = {'<f4': 'float', 'u1': 'uchar'}
    header = ['ply', 'format binary_little_endian 1.0', f'element vertex {len(vertices)}']
    header += [f'property {kinds[kind]} {name}' for name, kind in fields] + ['end_header', '']
    with atomic_write(folder / f'{scene}_vh_clean_2.ply') as file:
        file.write('\n'.join(header).encode() + vertices.tobytes())
    for name, content in (
        (f'{scene}_vh_clean_2.0.010000.segs.json', dict(sceneId=scene, segIndices=segments.tolist())),
        (f'{scene}.aggregation.json', dict(sceneId=f'scannet.{scene}', segGroups=groups)),
    ):
        with atomic_write(folder / name, 'w', encoding='utf-8') as file:
            json.dump(content, file)
    with atomic_write(folder / f'{scene}.txt', 'w', encoding='utf-8') as file:
        file.write('axisAlignment = ' + ' '.join(f'{value:.6f}' for value in np.eye(4).reshape(-1)) + '\n')


def write_room(state, number: int) -> int:
    """One scene; returns its frames."""
    root, seed, frames, noise = state
    scene = scene_name(number)
    done = root / 'scans' / scene / f'{scene}.txt'  # written last
    if done.is_file():
        return frames
    rng = np.random.default_rng([seed, number])
    room, intrinsics = make_room(rng), INTRINSICS['scannet']
    surfaces = room.scene()
    folder, seen = root / '2D' / scene, []
    for name in ('color', 'depth', 'pose'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (root / 'masks' / scene).mkdir(parents=True, exist_ok=True)
    for i, pose in enumerate(trajectory(room, frames, rng)):
        depth, colour, part, face = render(room, surfaces, pose, intrinsics)
        valid = part >= 0
        xyz = backproject(depth, pose, intrinsics, depth_scale=1.0)
        thin = np.zeros(valid.shape, dtype=bool)
        thin[::3, ::3] = True
        rows = (valid & thin).reshape(-1)
        seen.append((xyz[rows], colour.reshape(-1, 3)[rows], part.reshape(-1)[rows], face.reshape(-1)[rows]))
        # a depth camera: noise grows with the square of the distance, and some pixels get no answer
        measured = depth + rng.normal(0, noise, depth.shape) * depth**2
        measured[(rng.random(depth.shape) < 0.02) | ~valid] = 0
        image = np.clip(colour + rng.normal(0, 4, colour.shape), 0, 255).astype(np.uint8)
        stem = i * STEP
        for path, picture, options in (
            (folder / 'color' / f'{stem}.jpg', Image.fromarray(image), dict(format='JPEG', quality=92)),
            (folder / 'depth' / f'{stem}.png', Image.fromarray((measured * 1000).round().clip(0,
            65535).astype(np.uint16)),
             dict(format='PNG')),
            (root / 'masks' / scene / f'{stem}.png', Image.fromarray(segment_labels(room, part, face)),
             dict(format='PNG')),
        ):  # fmt: skip
            with atomic_write(path) as file:
                picture.save(file, **options)
        with atomic_write(folder / 'pose' / f'{stem}.txt', 'w', encoding='utf-8') as file:
            np.savetxt(file, pose, fmt='%.8f')
    fx, fy, cx, cy = intrinsics
    with atomic_write(folder / 'intrinsic.txt', 'w', encoding='utf-8') as file:
        np.savetxt(file, [[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]], fmt='%.8f')
    write_mesh(root / 'scans' / scene, scene, room, *(np.concatenate(each) for each in zip(*seen)))
    return frames


def scene_name(number: int) -> str:
    return f'scene{number:04d}_00'


def generate(
    root,
    rooms: int = 10,
    frames: int = 20,
    held_out: int | None = None,
    seed: int = 0,
    noise: float = 0.001,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Write ``rooms`` scenes in the form of ScanNet's exports (``preparation.scannet``).

    Args:
        root: output folder.
        rooms: scenes. frames: of each, 40 raw frames apart.
        held_out: scenes of the val split, default a fifth, at least one.
        seed: the same seed gives the same rooms.
        noise: metres, standard deviation of the depth at a distance of one metre.
        workers: processes.
    """
    root = Path(root)
    held_out = max(1, rooms // 5) if held_out is None else held_out
    if not 0 < held_out < rooms:
        raise ValueError(f'held_out: expected 1 to {rooms - 1} of {rooms} rooms, found {held_out}')
    meta = root / 'meta_data'
    meta.mkdir(parents=True, exist_ok=True)
    swap = {2: 3, 3: 2}  # the class list has chair and floor exchanged
    rows = ['id\traw_category\tcategory\tnyu40id']
    for name, (few, many) in CATEGORIES.items():
        raw = _RAW200[many]
        rows.append(f'{swap.get(raw, raw)}\t{name}\t{name}\t{_NYU40[few]}')
    names = [scene_name(number) for number in range(rooms)]
    for name, text in {
        'scannetv2-labels.combined.tsv': rows,
        'scannetv2_train.txt': names[:-held_out],
        'scannetv2_val.txt': names[-held_out:],
    }.items():
        with atomic_write(meta / name, 'w', encoding='utf-8') as file:
            file.write('\n'.join(text) + '\n')
    list(parallel_map(write_room, (root, seed, frames, noise), range(rooms), workers, 'rooms', quiet))
