"""PLY files (binary, little endian): points, and voxels or boxes as meshes."""

from pathlib import Path

import numpy as np

from occforge.datasets import occ3d
from occforge.fileio import atomic_write

from .occupancy import FACE_CORNERS, check_grid
from .sensors import box_corners

_TYPES = {'f4': 'float', 'f8': 'double', 'u1': 'uchar', 'i2': 'short', 'i4': 'int', 'u2': 'ushort', 'u4': 'uint'}
_BOX_QUADS = np.array([[0, 1, 2, 3], [4, 7, 6, 5], [0, 3, 7, 4], [1, 5, 6, 2], [3, 2, 6, 7], [0, 4, 5, 1]])


def write_ply(path, points, colours, faces=None, **columns) -> None:
    """Write vertices and, where given, faces; the file appears whole or not at all.

    Args:
        path: the file.
        points: (V, 3) metres.
        colours: (V, 3) RGB 0..255, or one colour.
        faces: (F, n) vertex numbers, or None.
        **columns: further properties of the vertices, (V,) integers or floats (``label=...``).
    """
    points = np.asarray(points, np.float32).reshape(-1, 3)
    colours = np.broadcast_to(np.asarray(colours), points.shape)
    fields = {name: (points[:, axis], 'f4') for axis, name in enumerate('xyz')}
    fields |= {name: (colours[:, axis], 'u1') for axis, name in enumerate(('red', 'green', 'blue'))}
    for name, values in columns.items():
        values = np.asarray(values)
        fields[name] = values, 'f4' if values.dtype.kind == 'f' else 'u1' if values.dtype.kind == 'b' else 'i4'
    vertices = np.empty(len(points), [(name, f'<{kind}') for name, (_, kind) in fields.items()])
    for name, (values, _) in fields.items():
        vertices[name] = values
    header = ['ply', 'format binary_little_endian 1.0', f'element vertex {len(points)}']
    header += [f'property {_TYPES[kind]} {name}' for name, (_, kind) in fields.items()]
    parts = [vertices.tobytes()]
    if faces is not None:
        faces = np.asarray(faces)
        rows = np.empty(len(faces), [('count', 'u1'), ('vertices', '<i4', faces.shape[1:])])
        rows['count'], rows['vertices'] = faces.shape[1], faces
        header += [f'element face {len(faces)}', 'property list uchar int vertex_indices']
        parts.append(rows.tobytes())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'wb') as file:
        file.write(('\n'.join([*header, 'end_header']) + '\n').encode())
        file.writelines(parts)


def voxel_mesh(semantics, palette=None, point_cloud_range=occ3d.POINT_CLOUD_RANGE) -> tuple:
    """The surface of a label grid: faces of occupied voxels that no other one covers.

    Args:
        semantics: (X, Y, Z) class numbers; the palette's last class is free; 255 is drawn as free.
        palette: (classes, 3) RGB; default Occ3D's.
        point_cloud_range: of the grid, metres.

    Returns:
        points (4 F, 3) float64 metres, colours (4 F, 3) uint8, labels (4 F,) int64, faces (F, 4) int64.
    """
    palette = np.asarray(occ3d.PALETTE if palette is None else palette)[:, :3]
    semantics = check_grid('semantics', semantics, len(palette))
    occupied = semantics != len(palette) - 1
    padded = np.pad(occupied, 1)
    lower = np.asarray(point_cloud_range[:3], np.float64)
    voxel = (np.asarray(point_cloud_range[3:], np.float64) - lower) / semantics.shape
    corners, labels = [], []
    for side in range(6):
        axis, positive = divmod(side, 2)
        neighbour = [slice(1, -1)] * 3
        neighbour[axis] = slice(2, None) if positive else slice(0, -2)
        cells = np.argwhere(occupied & ~padded[tuple(neighbour)])
        # outward faces go round counterclockwise
        corner = FACE_CORNERS[side][::-1] if side in (0, 3, 4) else FACE_CORNERS[side]
        corners.append(cells[:, None] + corner)
        labels.append(semantics[tuple(cells.T)])
    points = (np.concatenate(corners) * voxel + lower).reshape(-1, 3)
    labels = np.repeat(np.concatenate(labels).astype(np.int64), 4)
    return points, palette[labels].astype(np.uint8), labels, np.arange(len(points)).reshape(-1, 4)


def box_mesh(boxes) -> tuple:
    """(M, 7+) boxes (x, y, z of the middle, dx, dy, dz, yaw) -> points (8 M, 3), faces (6 M, 4)."""
    corners = box_corners(boxes)
    faces = _BOX_QUADS[None] + 8 * np.arange(len(corners))[:, None, None]
    return corners.reshape(-1, 3), faces.reshape(-1, 4)
