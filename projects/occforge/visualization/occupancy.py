"""Pictures of label grids, drawn in software: from above and in perspective.

Grids are (X, Y, Z) class numbers in the ego frame (x forward, y left, z up), as in Occ3D. Pictures are RGB uint8.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from occforge.datasets import occ3d

EGO_BOX = (-1.0, -0.95, 0.0, 3.5, 0.95, 1.6)
"""Lower and upper corner of the measuring car in its own frame (origin: rear axle, on the ground), metres."""
EGO_COLOUR = (240, 240, 245)
SKY = (236, 240, 245)
# brightness of the faces -x, +x, -y, +y, -z, +z: light from above and a little from behind and the left
FACE_SHADE = np.array([0.86, 0.70, 0.74, 0.80, 0.5, 1.0])


@dataclass(frozen=True)
class Camera:
    """A pinhole camera for :func:`draw_occupancy_perspective`.

    Attributes:
        eye: position, ego metres.
        target: the point in the middle of the picture, ego metres.
        fov: horizontal field of view, degrees.
        size: (width, height) of the picture, pixels.
    """

    eye: tuple = (-53.0, 5.0, 30.0)
    target: tuple = (-1.0, 0.0, -3.0)
    fov: float = 62.0
    size: tuple = (960, 480)

    def axes(self) -> np.ndarray:
        """(3, 3): rows right, down, forward in ego coordinates."""
        forward = np.subtract(self.target, self.eye).astype(np.float64)
        length = np.linalg.norm(forward)
        if not length > 0:
            raise ValueError(f'camera: eye and target must differ, both are {self.eye}')
        forward /= length
        up = np.array([0.0, 0.0, 1.0])
        if abs(forward @ up) > 0.999:  # looking straight down: the picture's top is where the car drives to
            up = np.array([1.0, 0.0, 0.0])
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])


def check_grid(name: str, grid, num_classes: int, shape=None) -> np.ndarray:
    """``grid`` as a uint8 array (X, Y, Z); ValueError where it is none, or holds a class number that does not exist.

    255, "not known" in derived labels, is drawn as free space (the last class).
    """
    grid = np.asarray(grid)
    if grid.ndim != 3 or (shape is not None and grid.shape != tuple(shape)):
        raise ValueError(f'{name}: expected a grid {tuple(shape) if shape else "(X, Y, Z)"}, found shape {grid.shape}')
    grid = np.where(grid == 255, num_classes - 1, grid)
    if grid.size and (grid.min() < 0 or grid.max() >= num_classes):
        raise ValueError(f'{name}: expected class numbers 0..{num_classes - 1}, found {grid.min()}..{grid.max()}')
    return grid.astype(np.uint8)


def _colours(semantics, palette, mask, background, unseen):
    """Grid (X, Y, Z, 3) float32 of voxel colours and the boolean grid of what is drawn."""
    drawn = semantics != len(palette) - 1
    colours = np.asarray(palette, np.float32)[semantics]
    if mask is not None:
        mask = np.asarray(mask).astype(bool)
        if mask.shape != semantics.shape:
            raise ValueError(f'mask: expected the shape of the grid {semantics.shape}, found {mask.shape}')
        if unseen == 'hide':
            drawn &= mask
        elif unseen == 'fade':
            grey = np.asarray(background, np.float32) * 0.92
            colours = np.where(mask[..., None], colours, colours * 0.15 + grey * 0.85)
        elif unseen != 'show':
            raise ValueError(f"unseen: expected 'fade', 'hide' or 'show', found {unseen!r}")
    return colours, drawn


def _palette(palette):
    return np.asarray(occ3d.PALETTE if palette is None else palette)[:, :3]


def draw_occupancy_top(
    semantics, mask=None, *, size=600, palette=None, point_cloud_range=occ3d.POINT_CLOUD_RANGE, unseen='fade', ego=True
):
    """The grid from straight above: of every column the topmost voxel that is not free, shaded by height.

    Args:
        semantics: (X, Y, Z) class numbers; the palette's last class is free space.
        mask: (X, Y, Z) bool; voxels outside are drawn as ``unseen`` says. None: all are seen.
        size: height of the picture in pixels; the width follows from the grid.
        palette: (classes, 3) RGB 0..255; default Occ3D's.
        point_cloud_range: (x0, y0, z0, x1, y1, z1) of the grid, ego metres.
        unseen: 'fade' (pale), 'hide' or 'show'.
        ego: draw the measuring car, and circles every 10 m around it.

    Returns:
        (H, W, 3) uint8; up is forward (+x), left is left (+y).
    """
    palette = _palette(palette)
    semantics = check_grid('semantics', semantics, len(palette))
    background = np.array((255, 255, 255), np.float32)
    colours, drawn = _colours(semantics, palette, mask, background, unseen)
    nx, ny, nz = semantics.shape
    top = nz - 1 - np.argmax(drawn[..., ::-1], axis=-1)
    any_drawn = drawn.any(-1)
    height = np.where(any_drawn, top, 0).astype(np.float32)
    picture = np.take_along_axis(colours, top[..., None, None].repeat(3, -1), axis=2)[:, :, 0]
    # light from the front left: a cell higher than its neighbour behind catches light, a lower one lies in shade
    padded = np.pad(height, 1, mode='edge')
    slope = (height - padded[2:, 1:-1]) + (height - padded[1:-1, 2:])
    light = 0.80 + 0.20 * height / max(nz - 1, 1) + 0.035 * np.clip(slope, -4, 4)
    picture = np.where(any_drawn[..., None], picture * light[..., None], background).clip(0, 255)
    picture = picture[::-1, ::-1].astype(np.uint8)  # rows: x downwards to upwards; columns: y to the left
    scale = size / nx
    shape = max(1, round(ny * scale)), size
    picture = cv2.resize(picture, shape, interpolation=cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA)
    if ego:
        _mark_ego(picture, point_cloud_range)
    return picture


def _mark_ego(picture, point_cloud_range) -> None:
    x0, y0, _, x1, y1, _ = point_cloud_range
    height, width = picture.shape[:2]

    def pixel(x, y):
        return (y1 - y) / (y1 - y0) * width * 16, (x1 - x) / (x1 - x0) * height * 16

    overlay = picture.copy()
    middle = tuple(round(v) for v in pixel(0, 0))
    for radius in range(10, int(np.hypot(max(-x0, x1), max(-y0, y1))) + 1, 10):
        axis = round(radius / (y1 - y0) * width * 16), round(radius / (x1 - x0) * height * 16)
        cv2.ellipse(overlay, (middle[0] // 16, middle[1] // 16), (axis[0] // 16, axis[1] // 16), 0, 0, 360,
                    (70, 74, 80), 1, cv2.LINE_AA)  # fmt: skip
    cv2.addWeighted(overlay, 0.35, picture, 0.65, 0, dst=picture)
    back, right, _, front, left, _ = EGO_BOX
    nose = front - 1.2
    outline = [(back, right), (nose, right), (front, right * 0.6), (front, left * 0.6), (nose, left), (back, left)]
    outline = np.array([pixel(*p) for p in outline]).round().astype(np.int32)
    cv2.fillPoly(picture, [outline], EGO_COLOUR, cv2.LINE_AA, shift=4)
    cv2.polylines(picture, [outline], True, (30, 30, 34), 1, cv2.LINE_AA, shift=4)


def draw_occupancy_perspective(
    semantics, mask=None, *, camera=None, palette=None, point_cloud_range=occ3d.POINT_CLOUD_RANGE, unseen='hide',
    ego=True, background=SKY, supersample=2,
):  # fmt: skip
    """The grid's voxels as shaded cubes seen by a pinhole camera.

    Painter's algorithm over the visible faces only (towards the camera and not covered by a neighbour). The order is
    exact: along any ray from the eye the distance in cell steps to the eye's cell only grows, so cells drawn by
    falling step distance never hide a nearer one.

    Args:
        semantics: (X, Y, Z) class numbers; the palette's last class is free space.
        mask: (X, Y, Z) bool; voxels outside are drawn as ``unseen`` says. None: all are seen.
        camera: a :class:`Camera`; default behind and above the car.
        palette: (classes, 3) RGB 0..255; default Occ3D's.
        point_cloud_range: (x0, y0, z0, x1, y1, z1) of the grid, ego metres.
        unseen: 'hide', 'fade' (pale) or 'show'.
        ego: draw the measuring car as white voxels where the grid is free.
        background: RGB of the sky, into which distance fades.
        supersample: drawn this many times larger and averaged down.

    Returns:
        (height, width, 3) uint8 of ``camera.size``.
    """
    camera = camera or Camera()
    palette = _palette(palette)
    semantics = check_grid('semantics', semantics, len(palette))
    colours, drawn = _colours(semantics, palette, mask, background, unseen)
    shape = np.array(semantics.shape)
    lower = np.asarray(point_cloud_range[:3], np.float64)
    voxel = (np.asarray(point_cloud_range[3:], np.float64) - lower) / shape
    if ego:
        first = np.clip(np.round((np.array(EGO_BOX[:3]) - lower) / voxel).astype(int), 0, shape)
        last = np.clip(np.round((np.array(EGO_BOX[3:]) - lower) / voxel).astype(int), 0, shape)
        car = tuple(slice(a, b) for a, b in zip(first, last))
        colours[car][~drawn[car]] = EGO_COLOUR
        drawn = drawn.copy()
        drawn[car] = True

    width, height = (int(v * supersample) for v in camera.size)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = background
    cells, sides, steps = _visible_faces(drawn, (np.asarray(camera.eye) - lower) / voxel)
    if len(cells):
        _paint(canvas, cells, sides, steps, drawn, colours, camera, lower, voxel, np.asarray(background, np.float32))
    if supersample != 1:
        canvas = cv2.resize(canvas, tuple(camera.size), interpolation=cv2.INTER_AREA)
    return canvas


# corners of the faces -x, +x, -y, +y, -z, +z of a unit cube, going round
FACE_CORNERS = np.array(
    [
        [[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1]],
        [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]],
        [[0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]],
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]],
    ],
    np.float64,
)


def _visible_faces(drawn, eye):
    """Cells (F, 3), face numbers (F,) and step distances (F,), in painting order. ``eye`` is in cell units."""
    padded = np.pad(drawn, 1)
    cells, sides = [], []
    for side in range(6):
        axis, positive = divmod(side, 2)
        neighbour = [slice(1, -1)] * 3
        neighbour[axis] = slice(2, None) if positive else slice(0, -2)
        index = np.arange(drawn.shape[axis])
        towards = eye[axis] > index + 1 if positive else eye[axis] < index
        towards = towards.reshape([-1 if a == axis else 1 for a in range(3)])
        found = np.argwhere(drawn & ~padded[tuple(neighbour)] & towards)
        cells.append(found)
        sides.append(np.full(len(found), side))
    cells, sides = np.concatenate(cells), np.concatenate(sides)
    steps = np.abs(cells - np.floor(eye)).sum(-1)
    order = np.argsort(-steps, kind='stable')
    return cells[order], sides[order], steps[order]


def _ambient(drawn, cells, sides):
    """(F,) in 0.7..1: how open the surrounding of a face is, from the 8 cells around the one in front of it."""
    padded = np.pad(drawn, 2)
    open_share = np.zeros(len(cells), np.float32)
    for side in range(6):
        chosen = np.flatnonzero(sides == side)
        if not len(chosen):
            continue
        axis, positive = divmod(side, 2)
        front = cells[chosen] + 2
        front[:, axis] += 1 if positive else -1
        others = [a for a in range(3) if a != axis]
        count = np.zeros(len(chosen), np.float32)
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                if a or b:
                    near = front.copy()
                    near[:, others[0]] += a
                    near[:, others[1]] += b
                    count += padded[tuple(near.T)]
        open_share[chosen] = 1 - count / 8
    return 0.66 + 0.34 * open_share


def _paint(canvas, cells, sides, steps, drawn, colours, camera, lower, voxel, sky) -> None:
    height, width = canvas.shape[:2]
    axes = camera.axes()
    eye = np.asarray(camera.eye, np.float64)
    focal = width / 2 / np.tan(np.radians(camera.fov) / 2)
    corners = lower + (cells[:, None] + FACE_CORNERS[sides]) * voxel - eye
    seen = corners @ axes.T
    in_front = (seen[..., 2] > 0.2).all(1)
    depth = np.maximum(seen[..., 2], 0.2)
    pixels = seen[..., :2] / depth[..., None] * focal + np.array([width, height]) / 2
    on_screen = (pixels.max(1) > 0).all(-1) & (pixels[..., 0].min(1) < width) & (pixels[..., 1].min(1) < height)
    keep = np.flatnonzero(in_front & on_screen)
    cells, sides, pixels = cells[keep], sides[keep], pixels[keep]
    distance = np.linalg.norm(corners[keep].mean(1), axis=-1)[:, None]
    face = colours[tuple(cells.T)] * (FACE_SHADE[sides] * _ambient(drawn, cells, sides))[:, None]
    fog = 0.55 * np.clip((distance - 45) / 75, 0, 1)
    edge = face * (1 - 0.28 * np.clip(1.6 - distance / 40, 0, 1))
    face = (face * (1 - fog) + sky * fog).clip(0, 255)
    edge = (edge * (1 - fog) + sky * fog).clip(0, 255)
    polygons = (pixels * 16).round().astype(np.int32)
    for polygon, colour, line in zip(polygons, face.tolist(), edge.tolist()):
        cv2.fillConvexPoly(canvas, polygon, colour, cv2.LINE_8, shift=4)
        cv2.polylines(canvas, [polygon], True, line, 1, cv2.LINE_8, shift=4)
