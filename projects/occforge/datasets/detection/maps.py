"""Map masks in the LiDAR frame, from nuScenes' map expansion.

Source: the protocol of Liu et al., "BEVFusion", ICRA 2023; polygons and lines are drawn as nuscenes-devkit draws them.
"""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from occforge.errors import ConfigError, DataError

MAP_CLASSES = ('drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider')
# classes that are several layers of the map; the others are the layer of their name
_LAYERS = {'divider': ('road_divider', 'lane_divider'), 'drivable_area*': ('road_segment', 'lane')}
_LINES = ('road_divider', 'lane_divider')


def layers_of(map_class: str) -> tuple[str, ...]:
    """Layers of the map expansion that make up a class."""
    return _LAYERS.get(map_class, (map_class,))


@lru_cache(maxsize=8)
def _locations(root: str, version: str) -> dict[str, str]:
    """Scene token -> location, from the tables."""
    folder = Path(root, version)
    if not (folder / 'scene.json').is_file() or not (folder / 'log.json').is_file():
        return {}
    logs = {log['token']: log['location'] for log in json.loads((folder / 'log.json').read_text())}
    return {s['token']: logs[s['log_token']] for s in json.loads((folder / 'scene.json').read_text())}


def map_location_of(root: str | os.PathLike, version: str | None, info: dict) -> str | None:
    """The map that a sample lies on, from the tables where its info does not say; None: not known."""
    return _locations(os.fspath(root), version or 'v1.0-trainval').get(str(info.get('scene_token')))


class RasterMap:
    """One location's map, ready to be drawn many times.

    Args:
        root: folder with ``maps/expansion/<location>.json``.
        location: e.g. 'singapore-onenorth'.
        layers: those that are read.

    Raises:
        DataError: the file is missing or not a map expansion.
    """

    def __init__(self, root: str | os.PathLike, location: str, layers: Sequence[str]):
        from nuscenes.map_expansion import map_api
        from shapely import STRtree

        file = Path(root, 'maps', 'expansion', f'{location}.json')
        if not file.is_file():
            raise DataError(f'{file}: no such file; the map expansion of nuScenes (v1.3) is unpacked into maps/')
        if location not in map_api.locations:  # a rig of one's own
            map_api.locations.append(location)
        try:
            nusc_map = map_api.NuScenesMap(dataroot=os.fspath(root), map_name=location)
        except (KeyError, ValueError) as error:
            raise DataError(f'{file}: not a map expansion of version 1.3 ({type(error).__name__}: {error})') from error
        self.shapes: dict[str, list] = {}
        for layer in layers:
            if not hasattr(nusc_map, layer):
                raise ConfigError(f'map layer {layer!r} is unknown, {file} has {", ".join(nusc_map.layer_names)}')
            shapes = []
            for record in getattr(nusc_map, layer):
                if layer in _LINES:
                    line = nusc_map.extract_line(record['line_token'])
                    shapes += [] if line.is_empty else [line]
                    continue
                tokens = record['polygon_tokens'] if layer == 'drivable_area' else [record['polygon_token']]
                polygons = [nusc_map.extract_polygon(token) for token in tokens]
                shapes += [polygon for polygon in polygons if not polygon.is_empty]
            self.shapes[layer] = shapes
        self.trees = {layer: STRtree(shapes) for layer, shapes in self.shapes.items() if shapes}

    def draw(self, centre, size, angle: float, canvas) -> dict[str, np.ndarray]:
        """Masks of a turned patch.

        Args:
            centre: (x, y) metres, map frame.
            size: (height along y, width along x) of the patch in metres.
            angle: degrees, from the map's x axis to the patch's.
            canvas: (rows, columns) of the mask.

        Returns:
            {layer: (rows, columns) uint8}: rows along the patch's y, columns along its x, both ascending.
        """
        from shapely import affinity, geometry

        x, y = centre
        height, width = size
        patch = geometry.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        patch = affinity.rotate(patch, angle, origin=(x, y), use_radians=False)
        scale = canvas[1] / width, canvas[0] / height

        masks = {}
        for layer, shapes in self.shapes.items():
            mask = np.zeros(canvas, np.uint8)
            near = self.trees[layer].query(patch, 'intersects') if layer in self.trees else ()
            for index in sorted(near):
                shape = shapes[index]
                if not shape.is_valid:
                    continue  # the devkit leaves them out, too
                part = shape.intersection(patch)
                if part.is_empty:
                    continue
                part = affinity.rotate(part, -angle, origin=(x, y), use_radians=False)
                part = affinity.affine_transform(part, [1, 0, 0, 1, -x, -y])
                part = affinity.affine_transform(part, [1, 0, 0, 1, width / 2, height / 2])
                part = affinity.scale(part, xfact=scale[0], yfact=scale[1], origin=(0, 0))
                for piece in getattr(part, 'geoms', [part]):
                    (_draw_line if layer in _LINES else _draw_polygon)(mask, piece)
            masks[layer] = mask
        return masks


def _draw_polygon(mask: np.ndarray, polygon) -> None:
    import cv2

    if polygon.geom_type != 'Polygon':
        return
    cv2.fillPoly(mask, [np.round(np.asarray(polygon.exterior.coords)[:, :2]).astype(np.int32)], 1)
    cv2.fillPoly(mask, [np.round(np.asarray(ring.coords)[:, :2]).astype(np.int32) for ring in polygon.interiors], 0)


def _draw_line(mask: np.ndarray, line) -> None:
    import cv2

    if line.geom_type != 'LineString':
        return
    points = np.asarray(line.coords)[:, :2].astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(mask, [points], False, 1, 2)


@lru_cache(maxsize=16)
def raster_map(root: str, location: str, layers: tuple[str, ...]) -> RasterMap:
    """A ``RasterMap``, read once in a process."""
    return RasterMap(root, location, layers)


def map_masks(
    root: str | os.PathLike,
    location: str,
    lidar2global: np.ndarray,
    xbound: Sequence[float],
    ybound: Sequence[float],
    classes: Sequence[str] = MAP_CLASSES,
    scale: float = 1.0,
) -> np.ndarray:
    """Masks of a sample in its (augmented) LiDAR frame.

    Args:
        root, location: of the map.
        lidar2global: (4, 4), from the augmented LiDAR frame.
        xbound, ybound: (lower, upper, step) metres; symmetric about 0.
        classes: names.
        scale: of the augmentation, by which the patch shrinks.

    Returns:
        (classes, X, Y) uint8 of 0 and 1.

    Raises:
        ConfigError: the bounds are not symmetric.
    """
    for name, bound in (('xbound', xbound), ('ybound', ybound)):
        if abs(bound[0] + bound[1]) > 1e-6:
            raise ConfigError(f'map masks: {name} is {list(bound)}, bounds symmetric about 0 are expected')
    size = (ybound[1] - ybound[0]) / scale, (xbound[1] - xbound[0]) / scale
    canvas = tuple(int((high - low) / step + 1e-6) for low, high, step in (ybound, xbound))
    axis = lidar2global[:3, :3] @ np.array([1.0, 0.0, 0.0])
    angle = np.arctan2(axis[1], axis[0]) / np.pi * 180
    layers = tuple(dict.fromkeys(layer for name in classes for layer in layers_of(name)))
    drawn = raster_map(os.fspath(root), location, layers).draw(lidar2global[:2, 3], size, angle, canvas)
    masks = np.zeros((len(classes), canvas[1], canvas[0]), np.uint8)
    for index, name in enumerate(classes):
        for layer in layers_of(name):
            masks[index] |= drawn[layer].T
    return masks
