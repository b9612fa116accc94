"""ScanNet's exports to the files and info files of ESAM; SceneNN and 3RScan in their own layouts: ``indoor_sources``.

Input, below ``--root-path``::

    2D/<scene>/{color/<n>.jpg, depth/<n>.png, pose/<n>.txt}        exported frames, depth in millimetres
    2D/<scene>/intrinsic.txt                                      4 x 4 or 3 x 3; without it ScanNet's camera
    scans/<scene>/<scene>_vh_clean_2.ply, ..._vh_clean_2.0.010000.segs.json, <scene>*.aggregation.json, <scene>.txt
    meta_data/scannetv2-labels.combined.tsv, meta_data/scannetv2_{train,val}.txt
    masks/<scene>/<n>.png (uint16 label image, 0: none) or <n>.npz (bool ``masks`` (M, H, W))     optional

Source of layout and steps: Dai et al., ScanNet, CVPR 2017; Xu et al., EmbodiedSAM, ICLR 2025.
"""

import csv
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from occforge.errors import DataError
from occforge.fileio import atomic_write

from .. import scannet_classes
from ..info_files import load_pickle
from ..rgbd import denoise_instances, sample_frame
from ..transforms.scannet import INTRINSICS, clip_path
from .progress import parallel_map

STEPS = dict(sv=200, mv=40)  # raw frames between those that are used
CLUSTERS = dict(sv=10, mv=8)  # groups of the points without a mask
NUM_SAMPLE = 20000


@dataclass
class Reconstruction:
    """A labelled mesh.

    Attributes:
        points: (V, 6) float32 metres in the raw frame, colours 0..255.
        segments: (V,) int64.
        instances: (V,) int64, 1-based object; 0: none.
        labels: (I + 1,) int64 raw label of each object, 0 for none.
        boxes: (I, 6) centre and size in the aligned frame.
        align: (4, 4) raw to aligned.
    """

    points: np.ndarray
    segments: np.ndarray
    instances: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    align: np.ndarray

    @property
    def aligned(self) -> np.ndarray:
        """(V, 3) metres."""
        return self.points[:, :3] @ self.align[:3, :3].T + self.align[:3, 3]


def label_map(path, column: str) -> dict[str, int]:
    """Raw category -> number in ``column`` ('nyu40id' or 'id') of ScanNet's label table."""
    try:
        with open(path, encoding='utf-8', newline='') as file:
            rows = list(csv.DictReader(file, delimiter='\t'))
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    if not rows or not {'raw_category', column} <= set(rows[0]):
        raise DataError(f'{path}: no table with the columns raw_category and {column}')
    return {row['raw_category']: int(row[column]) for row in rows if row[column]}


def read_json(path) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read: {error}') from error


def read_reconstruction(folder: Path, labels: dict[str, int]) -> Reconstruction:
    """The mesh of a scene with its labels.

    Args:
        folder: ``scans/<scene>``.
        labels: see ``label_map``; other categories count as 0.

    Raises:
        DataError: a file is missing or does not fit the others.
    """
    scene = folder.name
    mesh_path = folder / f'{scene}_vh_clean_2.ply'
    if not mesh_path.is_file():
        raise DataError(f'{mesh_path}: no such file (mesh of the scene)')
    mesh = trimesh.load(str(mesh_path), process=False)
    colours = (
        np.asarray(mesh.visual.vertex_colors)[:, :3] if hasattr(mesh, 'visual') else np.asarray(mesh.colors)[:, :3]
    )
    points = np.concatenate([np.asarray(mesh.vertices), colours], 1).astype(np.float32)
    segments_path = folder / f'{scene}_vh_clean_2.0.010000.segs.json'
    segments = np.asarray(read_json(segments_path)['segIndices'], dtype=np.int64)
    if len(segments) != len(points):
        raise DataError(f'{segments_path}: {len(segments)} ids for {len(points)} vertices')
    found = sorted(folder.glob(f'{scene}*.aggregation.json'))
    if not found:
        raise DataError(f'{folder}: no {scene}*.aggregation.json (objects of the scene)')
    groups = read_json(found[0])['segGroups']
    instances = np.zeros(len(points), dtype=np.int64)
    raw = np.zeros(len(groups) + 1, dtype=np.int64)
    for number, group in enumerate(groups, start=1):
        instances[np.isin(segments, group['segments'])] = number
        raw[number] = labels.get(group['label'], 0)
    return reconstruction(points, segments, instances, raw, read_alignment(folder / f'{scene}.txt'))


def reconstruction(points, segments, instances, labels, align) -> Reconstruction:
    """A ``Reconstruction`` with the boxes of its instances."""
    result = Reconstruction(points, segments, instances, labels, np.zeros((len(labels) - 1, 6)), align)
    xyz = result.aligned
    for number in range(len(labels) - 1):
        inside = xyz[instances == number + 1]
        if len(inside):
            low, high = inside.min(0), inside.max(0)
            result.boxes[number] = np.concatenate([(low + high) / 2, high - low])
    return result


def read_alignment(path: Path) -> np.ndarray:
    """``axisAlignment`` of a scene's text file, (4, 4); the identity where there is none."""
    if path.is_file():
        for line in path.read_text(encoding='utf-8').splitlines():
            name, _, values = line.partition('=')
            if name.strip() == 'axisAlignment':
                return np.array([float(value) for value in values.split()]).reshape(4, 4)
    return np.eye(4)


def read_matrix(path: Path) -> np.ndarray:
    """A text file of 4 x 4 (or 3 x 3) numbers."""
    try:
        matrix = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read: {error}') from error
    if matrix.shape not in ((4, 4), (3, 3)):
        raise DataError(f'{path}: has shape {matrix.shape}, expected 4 x 4')
    return matrix


def intrinsics_of(folder: Path, default) -> tuple:
    """fx, fy, cx, cy of a scene's frames: ``intrinsic.txt`` below ``folder`` or ``folder/intrinsic``, or
    ``default``."""
    for path in (folder / 'intrinsic.txt', folder / 'intrinsic' / 'intrinsic_depth.txt'):
        if path.is_file():
            matrix = read_matrix(path)
            return matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    return tuple(default)


def read_masks(folder: Path | None, frame: str):
    """Masks of a frame, as ``rgbd.sample_frame`` takes them; None where there is no file."""
    if folder is None:
        return None
    if (folder / f'{frame}.png').is_file():
        return np.asarray(Image.open(folder / f'{frame}.png')).astype(np.int64)
    if (folder / f'{frame}.npz').is_file():
        with np.load(folder / f'{frame}.npz', allow_pickle=False) as file:
            if 'masks' not in file.files:
                raise DataError(f'{folder / frame}.npz: no array named masks')
            return file['masks']
    return None


def read_frame(folder: Path, frame: str):
    """Colour (H, W, 3) uint8, depth (H, W) raw and pose (4, 4) of an exported frame; None where the pose is lost."""
    pose = read_matrix(folder / 'pose' / f'{frame}.txt')
    if not np.isfinite(pose).all():
        return None
    try:
        depth = np.asarray(Image.open(folder / 'depth' / f'{frame}.png')).astype(np.float32)
        colour = np.asarray(
            Image.open(folder / 'color' / f'{frame}.jpg')
            .convert('RGB')
            .resize(depth.shape[::-1], Image.Resampling.BILINEAR)
        )
    except OSError as error:
        raise DataError(f'{folder}: frame {frame} cannot be read: {error}') from error
    return colour, depth, pose


@dataclass
class Exports:
    """ScanNet's exports below ``root``; what other data sets have instead has the same methods.

    Attributes:
        root: folder of the exports.
        labels: see ``label_map``.
        intrinsics: of scenes without a file of their own.
    """

    root: Path
    labels: dict
    intrinsics: tuple

    own_images = True  # the images are JPEG files where the info files look for them

    def frames(self, scene: str) -> list[int]:
        """Raw numbers of the frames."""
        names = (path.stem for path in (self.root / '2D' / scene / 'color').glob('*.jpg'))
        return sorted(int(name) for name in names if name.isdigit())

    def frame(self, scene: str, number: int):
        """See ``read_frame``."""
        return read_frame(self.root / '2D' / scene, str(number))

    def camera(self, scene: str) -> tuple:
        """fx, fy, cx, cy of the frames."""
        return intrinsics_of(self.root / '2D' / scene, self.intrinsics)

    def reconstruction(self, scene: str) -> 'Reconstruction':
        """The labelled mesh."""
        return read_reconstruction(self.root / 'scans' / scene, self.labels)


@dataclass
class Job:
    """What exporting a scene needs; see ``prepare`` and ``export_split``."""

    stage: str
    source: Exports
    out: Path
    rec: Path | None
    masks: Path | None
    num_sample: int
    seed: int
    step: int


def _write(path: Path, values: np.ndarray, dtype: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(np.ascontiguousarray(values, dtype=dtype).tobytes())


def _write_image(path: Path, colour: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(colour).save(file, format='JPEG', quality=95)


def export_scene(job: Job, scene: str) -> dict:
    """Write the files of a scene.

    Returns:
        ``items``: info items (one a frame in 'sv', one in all in 'mv'), ``lost``: frames without a pose,
        ``unmasked``: frames without a mask file.
    """
    source = job.source
    frames = [number for number in source.frames(scene) if number % job.step == 0]
    if not frames:
        raise DataError(f'{source.root}: {scene}: no frame whose number is a multiple of {job.step}')
    rec = source.reconstruction(scene)
    if job.rec is not None:
        semantic = rec.labels[rec.instances]
        for name, values, dtype in (
            ('points', rec.points, '<f4'),
            ('super_points', np.unique(rec.segments, return_inverse=True)[1], '<i8'),
            ('instance_mask', rec.instances, '<i8'),
            ('semantic_mask', semantic, '<i8'),
        ):
            _write(job.rec / name / f'{scene}.bin', values, dtype)
    tree = cKDTree(rec.aligned)
    camera = source.camera(scene)
    kept, poses, lost, unmasked = [], [], 0, 0
    for number in frames:
        read = source.frame(scene, number)
        if read is None:
            lost += 1
            continue
        colour, depth, pose = read
        masks = read_masks(None if job.masks is None else job.masks / scene, str(number))
        unmasked += masks is None
        rng = np.random.default_rng([job.seed, number, *scene.encode()])
        data = sample_frame(colour, depth, pose, camera, masks, job.num_sample, CLUSTERS[job.stage], rng=rng)
        points = data['points']
        aligned = points[:, :3].astype(np.float64) @ rec.align[:3, :3].T + rec.align[:3, 3]
        instance = denoise_instances(aligned, rec.instances[tree.query(aligned)[1]], rec.boxes)
        semantic = rec.labels[instance]
        if job.stage == 'sv':
            points = points.copy()
            points[:, :3] -= data['center']
            pose = pose.copy()
            pose[:3, 3] -= data['center']
        if not source.own_images:
            _write_image(job.out / '2D' / scene / 'color' / f'{number}.jpg', colour)
        name = f'{scene}_{number}' if job.stage == 'sv' else f'{scene}/{number}'
        for part, values, dtype in (
            ('points', points, '<f4'),
            ('super_points', data['superpoints'], '<i8'),
            ('instance_mask', instance, '<i8'),
            ('semantic_mask', semantic, '<i8'),
        ):
            _write(job.out / part / f'{name}.bin', values, dtype)
        kept.append(number)
        poses.append(pose)
    align = rec.align.tolist()
    if job.stage == 'sv':
        items = [_frame_item(scene, number, pose, align) for number, pose in zip(kept, poses)]
    else:
        items = [_scene_item(scene, kept, poses, align)] if kept else []
    return dict(items=items, lost=lost, unmasked=unmasked)


def _frame_item(scene: str, number: int, pose: np.ndarray, align: list) -> dict:
    name = f'{scene}_{number}.bin'
    return dict(
        lidar_points=dict(num_pts_feats=6, lidar_path=name),
        pts_semantic_mask_path=name,
        pts_instance_mask_path=name,
        super_pts_path=name,
        img_path=f'2D/{scene}/color/{number}.jpg',
        pose=pose,
        axis_align_matrix=align,
        instances=[],
    )


def _scene_item(scene: str, frames: list[int], poses: list[np.ndarray], align: list) -> dict:
    def paths(folder):
        return [f'{folder}/{scene}/{number}.bin' for number in frames]

    return dict(
        point_cloud=dict(num_features=6, lidar_idx=scene),
        pts_paths=paths('points'),
        super_pts_paths=paths('super_points'),
        pts_instance_mask_paths=paths('instance_mask'),
        pts_semantic_mask_paths=paths('semantic_mask'),
        img_paths=[f'2D/{scene}/color/{number}.jpg' for number in frames],
        poses=poses,
        axis_align_matrix=align,
    )


def read_split(path: Path) -> list[str]:
    """Scene names, one a line."""
    try:
        return [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f'{path}: {error.strerror} (names of the scenes, one a line)') from error


def write_infos(path: Path, kind: str, items: list[dict]) -> None:
    names, _, _ = scannet_classes.classes(kind)
    things = {name: number for number, name in enumerate(names[2:])}
    content = dict(metainfo=dict(categories=things, dataset=kind, info_version='1.1'), data_list=items)
    with atomic_write(path) as file:
        pickle.dump(content, file)


def prepare(
    kind: str,
    stage: str,
    root,
    out=None,
    tag: str | None = None,
    rec=None,
    masks=None,
    workers: int = 1,
    num_sample: int = NUM_SAMPLE,
    camera: str = 'scannet',
    splits=('train', 'val'),
    seed: int = 0,
    step: int | None = None,
    quiet: bool = False,
) -> dict:
    """Export all scenes and write ``<tag>_oneformer3d_infos_{train,val}.pkl``.

    Args:
        kind: labels, 'scannet' (20 classes) or 'scannet200'.
        stage: 'sv' or 'mv'.
        root: folder of the exports (module docstring).
        out: output folder, default ``root``; the frames' images stay where they are and are linked as ``out/2D``.
        tag: prefix of the info files, default ``<kind>_<stage>``.
        rec: folder of the labelled reconstructions, on which scenes are evaluated; None: only 'mv' writes them, to
            ``<parent of out>/<kind>``.
        masks: folder of the masks, default ``root/masks`` where it exists; frames without a file are segmented by their
            geometry and colour.
        workers: processes.
        num_sample: points of a frame.
        camera: data set whose intrinsics hold where a scene has no file of its own.
        splits: which of ``meta_data/scannetv2_<split>.txt``.
        seed: of the sampling.
        step: raw frames between two that are used, default 200 in 'sv' and 40 in 'mv'.

    Returns:
        Summary: info file -> number of items; 'lost' and 'unmasked' frames.
    """
    if kind not in ('scannet', 'scannet200') or stage not in STEPS:
        raise DataError(
            f"kind 'scannet' or 'scannet200' and stage 'sv' or 'mv' are expected, found {kind!r}, {stage!r}"
        )
    root = Path(root)
    out = Path(out or root)
    out.mkdir(parents=True, exist_ok=True)
    if not (root / '2D').is_dir():
        raise DataError(f'{root}/2D: no such folder (exported frames)')
    if out.resolve() != root.resolve() and not (out / '2D').exists():
        os.symlink((root / '2D').resolve(), out / '2D')
    if masks is None and (root / 'masks').is_dir():
        masks = root / 'masks'
    if rec is None and stage == 'mv':
        rec = out.resolve().parent / kind
    labels = label_map(root / 'meta_data' / 'scannetv2-labels.combined.tsv', 'nyu40id' if kind == 'scannet' else 'id')
    job = Job(
        stage,
        Exports(root, labels, INTRINSICS[camera]),
        out,
        None if rec is None else Path(rec),
        None if masks is None else Path(masks),
        num_sample,
        seed,
        step or STEPS[stage],
    )
    named = {split: read_split(root / 'meta_data' / f'scannetv2_{split}.txt') for split in splits}
    return export_splits(job, kind, tag or f'{kind}_{stage}', named, workers, quiet)


def export_splits(job: Job, kind: str, tag: str, splits: dict[str, list[str]], workers: int, quiet: bool) -> dict:
    """Export the scenes of each split and write its info file.

    Args:
        kind: of the classes' names in the info files, 'scannet' or 'scannet200'.
        tag: prefix of the info files.
        splits: names of the scenes.

    Returns:
        Summary: 'files': info file -> number of items; 'lost' and 'unmasked' frames.
    """
    summary: dict = dict(files={}, lost=0, unmasked=0)
    for split, scenes in splits.items():
        results = dict(parallel_map(export_scene, job, scenes, workers, f'{tag} {split}', quiet))
        items = [item for index in range(len(scenes)) for item in results[index]['items']]
        path = job.out / f'{tag}_oneformer3d_infos_{split}.pkl'
        write_infos(path, kind, items)
        summary['files'][str(path)] = len(items)
        for name in ('lost', 'unmasked'):
            summary[name] += sum(result[name] for result in results.values())
    return summary


def pack_clip(out, tag: str, suffix: str = '_clip', splits=('train', 'val')) -> dict:
    """Write copies of the info files with the paths of the CLIP features.

    Args:
        out: folder of the info files. tag: their prefix. suffix: of the copies' names.

    Returns:
        New file -> (paths, files that exist).
    """
    out, written = Path(out), {}
    for split in splits:
        path = out / f'{tag}_oneformer3d_infos_{split}.pkl'
        content, names = load_pickle(path), []
        for item in content['data_list']:
            if 'img_paths' in item:
                item['clip_feat_paths'] = [clip_path(each) for each in item['img_paths']]
                names += item['clip_feat_paths']
            else:
                item['clip_feat_path'] = clip_path(item['img_path'])
                names.append(item['clip_feat_path'])
        target = path.with_name(f'{path.stem}{suffix}.pkl')
        with atomic_write(target) as file:
            pickle.dump(content, file)
        written[str(target)] = len(names), sum((out / name).is_file() for name in names)
    return written
