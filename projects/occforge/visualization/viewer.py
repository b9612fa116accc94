"""A label grid, points and boxes as one HTML file that turns, slices and compares; it loads nothing else.

The page draws with WebGL 2 and needs no server: the data lies in it, compressed. A prediction and its truth share one
camera; a divider between them is moved with the pointer or the arrow keys.
"""

import base64
import html
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from occforge.datasets import occ3d
from occforge.fileio import atomic_write

from .occupancy import check_grid
from .sensors import BOX_EDGES, box_corners

_TEMPLATE = Path(__file__).with_name('viewer.html')


@dataclass(frozen=True)
class Layer:
    """Points or line segments in the page.

    Attributes:
        name: beside its check box.
        places: (P, 3) ego metres; for 'lines' the two ends of each segment in turn.
        colours: (P, 3) RGB 0..255, or one colour.
        kind: 'points' or 'lines'.
        width: of points, pixels.
        side: 0: only in the left half (the first grid's), 1: only in the right one, None: in both.
        visible: shown at first.
        steps: how many of the places are there after each step of time, rising; None: all are always. With such layers
            the page has a slider and plays.
    """

    name: str
    places: np.ndarray
    colours: Sequence = (32, 36, 42)
    kind: str = 'points'
    width: float = 2.0
    side: int | None = None
    visible: bool = True
    steps: Sequence[int] | None = None


def box_layer(name: str, boxes, colours=(32, 36, 42), **options) -> Layer:
    """Boxes as a layer of lines.

    Args:
        name: beside its check box.
        boxes: (M, 7+) x, y, z of the middle, dx, dy, dz, yaw; ego metres and radians.
        colours: (M, 3) RGB 0..255, or one colour.
        **options: further fields of :class:`Layer`.
    """
    corners = box_corners(boxes)
    places = corners[:, np.array(BOX_EDGES).ravel()].reshape(-1, 3)
    colours = np.broadcast_to(np.asarray(colours), (len(corners), 3))
    return Layer(name, places, np.repeat(colours, 2 * len(BOX_EDGES), axis=0), kind='lines', **options)


def occupancy_page(
    grids: dict,
    *,
    mask=None,
    mask_name: str = 'mask',
    layers: Sequence[Layer] = (),
    title: str = 'Occupancy',
    class_names=None,
    palette=None,
    point_cloud_range=occ3d.POINT_CLOUD_RANGE,
) -> str:
    """The page as text.

    Args:
        grids: name -> (X, Y, Z) class numbers; none, one, or two of one shape, the left and the right one. The last
            class is free space; 255, "not known", is drawn as free.
        mask: (X, Y, Z) bool; the page has a box to show only voxels inside. None: no box.
        mask_name: what the box says.
        layers: points and boxes.
        title: headline.
        class_names, palette: names and (classes, 3) RGB; default Occ3D's.
        point_cloud_range: (x0, y0, z0, x1, y1, z1) of the grid, ego metres.

    Raises:
        ValueError: grids, mask, layers or colours do not fit.
    """
    names = list(occ3d.CLASS_NAMES if class_names is None else class_names)
    palette = np.asarray(occ3d.PALETTE if palette is None else palette)[:, :3]
    if len(names) != len(palette) or len(names) > 256:
        raise ValueError(f'palette: expected {len(names)} colours, one a class, 256 at most, found {len(palette)}')
    if len(grids) > 2:
        raise ValueError(f'grids: expected two at most, found {list(grids)}')
    shape = next((np.shape(grid) for grid in grids.values()), (1, 1, 1))
    if max(shape) > 65535:
        raise ValueError(f'grids: expected sides below 65536, found {shape}')
    cells = {name: check_grid(f'grids[{name!r}]', grid, len(names), shape) for name, grid in grids.items()}
    if mask is not None and np.shape(mask) != tuple(shape):
        raise ValueError(f'mask: expected the shape of the grid {tuple(shape)}, found {np.shape(mask)}')
    data = dict(
        title=title,
        classes=names,
        palette=palette.astype(int).tolist(),
        free=len(names) - 1,
        range=[float(value) for value in point_cloud_range],
        shape=list(shape),
        grids=[dict(name=name, cells=_packed(grid, np.uint8)) for name, grid in cells.items()],
        mask=None if mask is None else dict(name=mask_name, cells=_packed(np.asarray(mask) != 0, np.uint8)),
        layers=[_layer(layer) for layer in layers],
    )
    text = json.dumps(data, separators=(',', ':'), allow_nan=False)
    for sign in '<>&':  # inside a script element "</script>" would end it
        text = text.replace(sign, f'\\u{ord(sign):04x}')
    before, _, rest = _TEMPLATE.read_text(encoding='utf-8').partition('__TITLE__')
    middle, _, after = rest.partition('__DATA__')
    return f'{before}{html.escape(title)}{middle}{text}{after}'


def write_occupancy_page(path, grids: dict, **options) -> None:
    """Write :func:`occupancy_page` to a file, atomically."""
    path = Path(path)
    text = occupancy_page(grids, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'wb') as file:
        file.write(text.encode())


def _layer(layer: Layer) -> dict:
    places = np.asarray(layer.places, np.float32).reshape(-1, 3)
    if layer.kind not in ('points', 'lines') or layer.side not in (None, 0, 1):
        raise ValueError(f'layer {layer.name!r}: kind {layer.kind!r} or side {layer.side!r} is not known')
    if not np.isfinite(places).all():
        raise ValueError(f'layer {layer.name!r}: places hold values that are not finite')
    steps = None if layer.steps is None else [0, *map(int, layer.steps)]
    if steps is not None and (np.any(np.diff(steps) < 0) or steps[-1] > len(places) or len(steps) < 2):
        raise ValueError(f'layer {layer.name!r}: steps have to rise up to {len(places)} places at most')
    colours = np.broadcast_to(np.asarray(layer.colours, np.float64), places.shape).clip(0, 255)
    return dict(
        name=layer.name,
        kind=layer.kind,
        width=layer.width,
        side=layer.side,
        visible=layer.visible,
        steps=None if steps is None else steps[1:],
        places=_packed(places, np.float32),
        colours=_packed(colours, np.uint8),
    )


def _packed(array, kind) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, kind).tobytes(), 9)).decode()
