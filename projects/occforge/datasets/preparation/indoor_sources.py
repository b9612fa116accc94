"""SceneNN and 3RScan in their own layouts, to the files and info files of ESAM's scenes.

SceneNN, below ``--root-path``::

    <scene>/<scene>.ply        mesh, y down; vertices with colours and ``label``, an object
    <scene>/<scene>.xml        <label id="..." nyu_class="..."/> of each object
    <scene>/trajectory.log     five lines a frame: numbers, then 4 x 4 camera to world
    <scene>/image/image<n>.png, depth/depth<n>.png     n from 1; depth in millimetres
    mesh_segs/<scene>.segs.json                        of the mesh segmentation that ScanNet uses

3RScan::

    <scan>/labels.instances.annotated.v2.ply           vertices with colours, ``objectId`` and ``NYU40``
    <scan>/mesh.refined.0.010000.segs.v2.json
    <scan>/sequence/_info.txt                          cameras
    <scan>/sequence/frame-<n>.{color.jpg,depth.pgm,pose.txt}      n from 0; depth in millimetres

Labels are NYU40 numbers. Optional: masks/<scene>/<n>.png or .npz of a segmentation.

Source of the layouts: Hua et al., SceneNN, 3DV 2016; Wald et al., RIO, ICCV 2019; of the steps: Xu et al., EmbodiedSAM,
ICLR 2025.
"""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from occforge.errors import DataError

from .. import scannet_classes
from ..transforms.scannet import INTRINSICS
from . import scannet
from .scannet import Job, Reconstruction, export_splits, intrinsics_of, read_json, read_matrix, read_split

SIZE = (640, 480)  # of the images that are written
_NYU40 = {name: number for number, name in enumerate(scannet_classes.NYU40_CLASSES, start=1)}
_OTHER = _NYU40['otherprop']
_PLY_TYPES = dict(
    char='i1', int8='i1', uchar='u1', uint8='u1', short='i2', int16='i2', ushort='u2', uint16='u2', int='i4',
    int32='i4', uint='u4', uint32='u4', float='f4', float32='f4', double='f8', float64='f8',
)  # fmt: skip


def read_ply_vertices(path) -> np.ndarray:
    """The vertices of a PLY file (ASCII or little-endian binary) as a structured array with its own names.

    Raises:
        DataError: the file cannot be read, or its first element is no vertex.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror} (mesh)') from error
    head, mark, body = content.partition(b'end_header')
    lines = [line.split() for line in head.decode('ascii', 'replace').splitlines()]
    elements = [line for line in lines if line[:1] == ['element']]
    if not content.startswith(b'ply') or not mark or not elements or elements[0][1] != 'vertex':
        raise DataError(f'{path}: no PLY file whose first element is vertex')
    start = lines.index(elements[0]) + 1
    stop = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    kind, count = next(line[1] for line in lines if line[:1] == ['format']), int(elements[0][2])
    fields = [line for line in lines[start:stop] if line[:1] == ['property']]
    if any(line[1] not in _PLY_TYPES for line in fields):
        raise DataError(f'{path}: vertices with other properties than single numbers')
    dtype = np.dtype([(line[2], '<' + _PLY_TYPES[line[1]]) for line in fields])
    body = body[body.index(b'\n') + 1 :]
    try:
        if kind == 'binary_little_endian':
            return np.frombuffer(body, dtype, count)
        if kind != 'ascii':
            raise ValueError(f'format {kind} is not supported')
        rows = body.decode('ascii').splitlines()[:count]
        return np.array([tuple(row.split()) for row in rows], dtype=dtype)
    except ValueError as error:
        raise DataError(f'{path}: {count} vertices are expected: {error}') from error


def _labelled_mesh(path: Path, objects: str, segments_path: Path, classes) -> Reconstruction:
    """A mesh whose vertices name their objects.

    Args:
        objects: the vertices' field with the object, 0: none.
        segments_path: file with ``segIndices``.
        classes: function of the vertices and the (I,) ids of the objects, gives their (I,) NYU40 numbers.
    """
    vertices = read_ply_vertices(path)
    missing = {'x', 'y', 'z', 'red', 'green', 'blue', objects} - set(vertices.dtype.names)
    if missing:
        raise DataError(f'{path}: vertices without {", ".join(sorted(missing))}')
    points = np.stack([vertices[name].astype(np.float32) for name in ('x', 'y', 'z', 'red', 'green', 'blue')], 1)
    segments = np.asarray(read_json(segments_path)['segIndices'], dtype=np.int64)
    if len(segments) != len(points):
        raise DataError(f'{segments_path}: {len(segments)} ids for {len(points)} vertices')
    ids = np.unique(vertices[objects])
    ids = ids[ids > 0]
    instances = np.where(vertices[objects] > 0, np.searchsorted(ids, vertices[objects]) + 1, 0).astype(np.int64)
    labels = np.concatenate([[0], classes(vertices, ids)]).astype(np.int64)
    return scannet.reconstruction(points, segments, instances, labels, np.eye(4))


@dataclass
class SceneNN:
    """Scenes of SceneNN below ``root``; methods of ``scannet.Exports``. Poses and points stay as they are, y down: what
    loads them turns them (``dataset_type='scenenn'``)."""

    root: Path

    own_images = False

    def scenes(self) -> list[str]:
        """Folders with a mesh."""
        return sorted(path.parent.name for path in self.root.glob('*/*.ply') if path.stem == path.parent.name)

    def _images(self, scene: str, name: str) -> dict[int, Path]:
        found = (self.root / scene / name).glob(f'{name}*.png')
        numbers = ((re.fullmatch(rf'{name}0*(\d+)', path.stem), path) for path in found)
        return {int(match[1]): path for match, path in numbers if match}

    def frames(self, scene: str) -> list[int]:
        """Numbers of the frames, from 1, that have an image and a depth."""
        return sorted(self._images(scene, 'image').keys() & self._images(scene, 'depth').keys())

    def _poses(self, scene: str) -> np.ndarray:
        path = self.root / scene / 'trajectory.log'
        try:
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
            return np.array([[row for row in lines[i + 1 : i + 5]] for i in range(0, len(lines), 5)], dtype=np.float64)
        except (OSError, ValueError) as error:
            raise DataError(f'{path}: cannot be read as five lines a frame: {error}') from error

    def frame(self, scene: str, number: int):
        """See ``scannet.read_frame``."""
        poses = self._poses(scene)
        if number > len(poses):
            return None  # the reconstruction had lost the camera
        colour, depth = (self._images(scene, name)[number] for name in ('image', 'depth'))
        return _images(colour, depth, poses[number - 1])

    def camera(self, scene: str) -> tuple:
        """fx, fy, cx, cy of the frames."""
        return intrinsics_of(self.root / scene, INTRINSICS['scenenn'])

    def reconstruction(self, scene: str) -> Reconstruction:
        """The labelled mesh."""
        folder = self.root / scene
        path = folder / f'{scene}.xml'
        try:
            labels = ElementTree.parse(path).getroot().iter('label')
            names = {int(each.get('id')): (each.get('nyu_class') or '') for each in labels}
        except (OSError, TypeError, ValueError, ElementTree.ParseError) as error:
            raise DataError(f'{path}: cannot be read: {error}') from error

        def classes(vertices, ids):
            return [nyu40_number(names.get(int(i), '')) for i in ids]

        return _labelled_mesh(folder / f'{scene}.ply', 'label', self.root / 'mesh_segs' / f'{scene}.segs.json', classes)


def nyu40_number(name: str) -> int:
    """NYU40 number of a class's name; other names count as 'otherprop', none and 'unknown' as 0."""
    name = name.strip().lower().replace('_', ' ')
    return 0 if name in ('', 'unknown') else _NYU40.get(name, _OTHER)


@dataclass
class RScan:
    """Scans of 3RScan below ``root``; methods of ``scannet.Exports``. The images are brought to 640 x 480: the colour
    image is resized, and the depth image, whose camera is another one at the same place, is looked up at its pixels."""

    root: Path

    own_images = False

    def scenes(self) -> list[str]:
        """Folders with a labelled mesh."""
        return sorted(path.parent.name for path in self.root.glob('*/labels.instances.annotated.v2.ply'))

    def frames(self, scene: str) -> list[int]:
        """Numbers of the frames, from 0."""
        names = (path.name for path in (self.root / scene / 'sequence').glob('frame-*.color.jpg'))
        return sorted(
            int(match[1]) for match in (re.fullmatch(r'frame-(\d+)\.color\.jpg', name) for name in names) if match
        )

    def _info(self, scene: str, camera: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Intrinsics (fx, fy, cx, cy) and size (W, H) of the 'Color' or 'Depth' camera."""
        path = self.root / scene / 'sequence' / '_info.txt'
        try:
            lines = (line.partition('=') for line in path.read_text().splitlines())
            fields = {name.strip(): value.split() for name, _, value in lines}
            matrix = np.array(fields[f'm_calibration{camera}Intrinsic'], dtype=np.float64).reshape(4, 4)
            size = tuple(int(fields[f'm_{camera.lower()}{side}'][0]) for side in ('Width', 'Height'))
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f'{path}: the {camera} camera cannot be read: {error}') from error
        return matrix[[0, 1, 0, 1], [0, 1, 2, 2]], size

    def camera(self, scene: str) -> tuple:
        """fx, fy, cx, cy of the frames."""
        intrinsics, size = self._info(scene, 'Color')
        scale = np.tile(np.array(SIZE) / size, 2)
        # pixel centres are whole numbers
        return tuple(intrinsics * scale + [0, 0, *(0.5 * scale[:2] - 0.5)])

    def frame(self, scene: str, number: int):
        """See ``scannet.read_frame``."""
        stem = self.root / scene / 'sequence' / f'frame-{number:06d}'
        pose = read_matrix(stem.with_name(f'{stem.name}.pose.txt'))
        read = _images(stem.with_name(f'{stem.name}.color.jpg'), stem.with_name(f'{stem.name}.depth.pgm'), pose)
        if read is None:
            return None
        colour, depth, pose = read
        depth = depth_seen_from(depth, self._info(scene, 'Depth')[0], self.camera(scene), SIZE)
        return np.asarray(Image.fromarray(colour).resize(SIZE, Image.Resampling.BILINEAR)), depth, pose

    def reconstruction(self, scene: str) -> Reconstruction:
        """The labelled mesh."""

        def classes(vertices, ids):
            if 'NYU40' not in vertices.dtype.names:
                raise DataError(f'{scene}/labels.instances.annotated.v2.ply: vertices without NYU40')
            first = np.array([np.flatnonzero(vertices['objectId'] == i)[0] for i in ids], dtype=np.int64)
            return vertices['NYU40'][first]

        folder = self.root / scene
        return _labelled_mesh(
            folder / 'labels.instances.annotated.v2.ply', 'objectId',
            folder / 'mesh.refined.0.010000.segs.v2.json', classes,
        )  # fmt: skip


def _images(colour_path: Path, depth_path: Path, pose: np.ndarray):
    """Colour (H, W, 3) uint8, depth (h, w) float32 and the pose; None where the pose is lost."""
    if not np.isfinite(pose).all():
        return None
    try:
        with Image.open(colour_path) as colour, Image.open(depth_path) as depth:
            return np.asarray(colour.convert('RGB')), np.asarray(depth).astype(np.float32), pose
    except OSError as error:
        raise DataError(f'{colour_path} and {depth_path.name} cannot be read: {error}') from error


def depth_seen_from(depth: np.ndarray, intrinsics, wanted, size) -> np.ndarray:
    """A depth image as another camera at the same place sees it, by the nearest pixel, 0 outside.

    Args:
        depth: (h, w) along z.
        intrinsics, wanted: (fx, fy, cx, cy) of its camera and of the other.
        size: (W, H) of the other.

    Returns:
        (H, W).
    """
    (fx, fy, cx, cy), (gx, gy, dx, dy) = intrinsics, wanted
    u = np.rint((np.arange(size[0]) - dx) / gx * fx + cx).astype(int)
    v = np.rint((np.arange(size[1]) - dy) / gy * fy + cy).astype(int)
    inside = ((v >= 0) & (v < depth.shape[0]))[:, None] & ((u >= 0) & (u < depth.shape[1]))
    found = depth[v.clip(0, depth.shape[0] - 1)[:, None], u.clip(0, depth.shape[1] - 1)]
    return np.where(inside, found, 0)


SOURCES = {'scenenn': SceneNN, '3rscan': RScan}


def prepare(
    name: str,
    root,
    out=None,
    tag: str | None = None,
    rec=None,
    masks=None,
    scenes=None,
    workers: int = 1,
    num_sample: int = scannet.NUM_SAMPLE,
    step: int = scannet.STEPS['mv'],
    seed: int = 0,
    quiet: bool = False,
) -> dict:
    """Export scenes for evaluation and write ``<tag>_oneformer3d_infos_val.pkl``.

    Args:
        name: 'scenenn' or '3rscan'.
        root: folder of the data set.
        out: output folder, default ``data/<name>-mv`` beside ``root``.
        tag: prefix of the info file, default ``<name>_mv``.
        rec: folder of the labelled reconstructions, default ``<parent of out>/<name>``.
        masks: folder of the masks, default ``root/masks`` where it exists.
        scenes: file with their names, one a line; None: all.
        workers: processes.
        num_sample: points of a frame.
        step: raw frames between those that are used.
        seed: of the sampling.

    Returns:
        See ``scannet.export_splits``.
    """
    root = Path(root)
    out = Path(out or root.parent / f'{name}-mv')
    source = SOURCES[name](root)
    named = source.scenes() if scenes is None else read_split(Path(scenes))
    if not named:
        raise DataError(f'{root}: no scene of {name}')
    masks = root / 'masks' if masks is None and (root / 'masks').is_dir() else masks
    job = Job(
        'mv',
        source,
        out,
        Path(rec or out.resolve().parent / name),
        None if masks is None else Path(masks),
        num_sample,
        seed,
        step,
    )
    return export_splits(job, 'scannet', tag or f'{name}_mv', dict(val=named), workers, quiet)
