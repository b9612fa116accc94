"""Map layers of the city: an expansion file per location (version 1.3) and two pictures."""

import json
from pathlib import Path

import cv2
import numpy as np

from occforge.fileio import atomic_write

# the names and picture files that nuscenes-devkit knows
PICTURES = {
    'singapore-onenorth': '53992ee3023e5494b90c316c183be829',
    'singapore-hollandvillage': '37819e65e09e5547b8a3ceaefba56bb2',
    'singapore-queenstown': '93406b464a165eaba6d9de76ca09f5da',
    'boston-seaport': '36092f0b03a857c6a3403e25b4b7aab3',
}
RESOLUTION = 0.1  # metres per pixel of the pictures


class MapWriter:
    """Collects the polygons of all scenes at one location."""

    def __init__(self, location: str, edge: tuple[float, float], token):
        """``edge``: metres in x and y; ``token``: callable text -> token."""
        self.location, self.edge, self.token = location, edge, token
        self.nodes, self.polygons, self.lines = [], [], []
        self.layers = {
            name: []
            for name in (
                'drivable_area',
                'road_segment',
                'road_block',
                'lane',
                'ped_crossing',
                'walkway',
                'stop_line',
                'carpark_area',
                'road_divider',
                'lane_divider',
                'traffic_light',
                'lane_connector',
            )
        }
        w, h = (round(v / RESOLUTION) for v in edge)
        self.prior = np.zeros((h, w), np.uint8)
        self.base = np.full((h, w), 255, np.uint8)

    def _name(self, *parts):
        return self.token(' '.join(str(p) for p in ('map', self.location, *parts)))

    def _node(self, xy):
        token = self._name('node', len(self.nodes))
        self.nodes.append({'token': token, 'x': round(float(xy[0]), 3), 'y': round(float(xy[1]), 3)})
        return token

    def _polygon(self, points):
        token = self._name('polygon', len(self.polygons))
        nodes = [self._node(p) for p in points]
        self.polygons.append({'token': token, 'exterior_node_tokens': nodes, 'holes': []})
        return token

    def _line(self, points):
        token = self._name('line', len(self.lines))
        nodes = [self._node(p) for p in points]
        self.lines.append({'token': token, 'node_tokens': nodes})
        return token, nodes

    def add_scene(self, layers: dict, shift, lower, upper):
        """Polygons of one scene (its own coordinates; kept where they overlap lower..upper), moved by ``shift``."""
        from shapely.geometry import LineString, Polygon, box
        from shapely.ops import unary_union

        window = box(*lower, *upper)

        def pieces(polygon):
            shape = polygon if isinstance(polygon, Polygon) else Polygon(polygon)
            cut = shape.buffer(0).intersection(window)
            parts = getattr(cut, 'geoms', [cut])
            return [
                np.array(p.exterior.coords)[:-1] + shift for p in parts if p.geom_type == 'Polygon' and p.area > 0.05
            ]

        driveable = unary_union([Polygon(p).buffer(0.01) for p in layers['drivable_area']]).intersection(window)
        tokens = []
        for part in getattr(driveable, 'geoms', [driveable]):
            if part.geom_type != 'Polygon':
                continue
            exterior = self._polygon(np.array(part.simplify(0.02).exterior.coords)[:-1] + shift)
            holes = []
            for ring in part.simplify(0.02).interiors:
                holes.append({'node_tokens': [self._node(p) for p in np.array(ring.coords)[:-1] + shift]})
            self.polygons[-1]['holes'] = holes
            tokens.append(exterior)
            self._draw(part, shift, 255, 60)
        number = len(self.layers['drivable_area'])
        self.layers['drivable_area'].append({'token': self._name('drivable_area', number), 'polygon_tokens': tokens})
        walk = unary_union([Polygon(p).buffer(0.01) for p in layers['walkway']] or [Polygon()])
        walk = walk.difference(driveable).intersection(window)
        for part in getattr(walk, 'geoms', [walk]):
            if part.geom_type == 'Polygon' and part.area > 0.3:
                self._draw(part, shift, 255, 150)
                points = np.array(part.simplify(0.02).exterior.coords)[:-1] + shift
                self._add('walkway', self._polygon(points))
        segments = []
        for polygon, junction in layers['road_segment']:
            for points in pieces(polygon):
                segments.append(
                    self._add(
                        'road_segment',
                        self._polygon(points),
                        is_intersection=junction,
                        drivable_area_token=self.layers['drivable_area'][number]['token'],
                    )
                )
                if not junction:
                    self._add(
                        'road_block',
                        self._polygon(points),
                        from_edge_line_token='',
                        to_edge_line_token='',
                        road_segment_token=segments[-1],
                    )
        for polygon in layers['lane']:
            for points in pieces(polygon):
                self._add(
                    'lane',
                    self._polygon(points),
                    lane_type='CAR',
                    from_edge_line_token='',
                    to_edge_line_token='',
                    left_lane_divider_segments=[],
                    right_lane_divider_segments=[],
                )
        for name in ('ped_crossing', 'carpark_area'):
            extra = (
                {'road_segment_token': segments[0]}
                if name == 'ped_crossing'
                else {
                    'orientation': 0.0,
                    'road_block_token': '',
                }
            )
            for polygon in layers[name]:
                for points in pieces(polygon):
                    self._add(name, self._polygon(points), **extra)
        for polygon in layers['stop_line']:
            for points in pieces(polygon):
                self._add(
                    'stop_line',
                    self._polygon(points),
                    stop_line_type='STOP_SIGN',
                    ped_crossing_tokens=[],
                    traffic_light_tokens=[],
                    road_block_token='',
                )
        for name in ('road_divider', 'lane_divider'):
            for points in layers[name]:
                cut = LineString(points).intersection(window) if len(points) > 1 else LineString()
                for part in getattr(cut, 'geoms', [cut]):
                    if part.geom_type != 'LineString' or part.is_empty:
                        continue
                    line, nodes = self._line(np.array(part.coords) + shift)
                    record = {'token': self._name(name, len(self.layers[name])), 'line_token': line}
                    if name == 'lane_divider':
                        kinds = ['SINGLE_DASHED_WHITE'] * len(nodes)
                        record['lane_divider_segments'] = [
                            {'node_token': n, 'segment_type': k} for n, k in zip(nodes, kinds)
                        ]
                    else:
                        record['road_segment_token'] = segments[0]
                    self.layers[name].append(record)

    def _add(self, layer, polygon, **extra):
        token = self._name(layer, len(self.layers[layer]))
        self.layers[layer].append({'token': token, 'polygon_token': polygon, **extra})
        return token

    def _draw(self, part, shift, prior, base):
        def ring(coords):
            q = (np.array(coords)[:, :2] + shift) / RESOLUTION
            q[:, 1] = self.prior.shape[0] - q[:, 1]  # row 0 is the north
            return np.rint(q * 16).astype(np.int32)

        rings = [ring(part.exterior.coords), *(ring(r.coords) for r in part.interiors)]
        cv2.fillPoly(self.prior, rings, prior, shift=4)
        cv2.fillPoly(self.base, rings, base, shift=4)

    def write(self, root) -> str:
        """Write the location's files; returns the path of the semantic prior below ``root``."""
        data = {
            'version': '1.3',
            'canvas_edge': [float(v) for v in self.edge],
            'polygon': self.polygons,
            'line': self.lines,
            'node': self.nodes,
            **self.layers,
            'arcline_path_3': {},
            'connectivity': {},
        }
        root = Path(root)
        with atomic_write(root / 'maps' / 'expansion' / f'{self.location}.json', 'w') as file:
            json.dump(data, file)
        prior = f'maps/{PICTURES[self.location]}.png'
        for path, image in ((prior, self.prior), (f'maps/basemap/{self.location}.png', self.base)):
            ok, encoded = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 4])
            if not ok:
                raise RuntimeError(f'{path}: OpenCV could not encode the image')
            with atomic_write(root / path) as file:
                file.write(encoded.tobytes())
        return prior
