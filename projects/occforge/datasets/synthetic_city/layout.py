"""The ground of a scene: roads and what lies beside them, as polygons, a raster of surfaces and a height field.

A scene has a road A through the origin, a road B that crosses or meets it there at a skew angle, and an ego route that
follows A or turns into B. Each side of each road is cut into segments of 12 to 30 m; every segment draws anew which
strips it has (parking lane, bicycle lane, planting strip, sidewalk, frontage), how wide and how high they are (kerbs
from flush to 15 cm) and what they are paved with.
"""

from typing import NamedTuple

import cv2
import numpy as np

from .objects import LABEL, hsv
from .textures import atlas

SURFACE_CELL = 0.08  # metres, raster of surfaces
HEIGHT_CELL = 0.2  # metres, height field
MARGIN = 80.0  # metres of world around the ego's path

DRIVEABLE, OTHER_FLAT, SIDEWALK, TERRAIN = (
    LABEL[name] for name in ('flat.driveable_surface', 'flat.other', 'flat.sidewalk', 'flat.terrain')
)


class Kind(NamedTuple):
    """A surface: its lidarseg label and how it looks."""

    label: int
    material: int
    colours: np.ndarray  # (2, 3) linear RGB
    angle: float  # direction of the pattern, radians
    scale: float


class Road:
    """A centre line with lanes on both sides. Lateral offsets are positive to the left."""

    def __init__(self, points, lanes, lane_width, median):
        self.points = np.asarray(points, float)
        step = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        self.s = np.concatenate([[0], np.cumsum(step)])
        self.s -= self.s[np.argmin(np.linalg.norm(self.points, axis=1))]  # 0 where it passes the origin
        tangent = np.gradient(self.points, axis=0)
        self.heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
        self.lanes, self.lane_width, self.median = lanes, lane_width, median

    @property
    def half(self) -> float:
        return self.median / 2 + self.lanes * self.lane_width

    def direction(self, s):
        return np.interp(s, self.s, self.heading)

    def at(self, s, offset=0.0):
        """World (..., 2) of station s and lateral offset."""
        s = np.asarray(s, float)
        heading = self.direction(s)
        x, y = np.interp(s, self.s, self.points[:, 0]), np.interp(s, self.s, self.points[:, 1])
        return np.stack([x - offset * np.sin(heading), y + offset * np.cos(heading)], -1)

    def strip(self, s0, s1, d0, d1, step=1.0):
        """Polygon between two stations and two offsets."""
        s = np.linspace(s0, s1, max(2, int(np.ceil(abs(s1 - s0) / step)) + 1))
        return np.concatenate([self.at(s, d0), self.at(s[::-1], d1)])

    def lane_offset(self, lane, forward, side):
        """Offset of a lane's middle; ``side`` 1 where traffic keeps right, -1 where it keeps left."""
        d = self.median / 2 + (lane + 0.5) * self.lane_width
        return -d * side if forward else d * side


class Segment(NamedTuple):
    """One stretch of one side of a road; strips as name -> (inner, outer) distance from the centre line."""

    road: int
    sign: int  # 1 left of the road, -1 right
    s0: float
    s1: float
    strips: dict
    front: str  # what the frontage is


class Layout:
    """See the module's description. All coordinates are the scene's own, metres."""

    def __init__(self, rng, travel, side):
        """``travel``: metres that the ego will cover; ``side``: 1 right-hand, -1 left-hand traffic."""
        self.rng, self.side = rng, side
        self.kinds: list[Kind] = []
        self.map = {
            name: []
            for name in (
                'drivable_area',
                'road_segment',
                'lane',
                'ped_crossing',
                'walkway',
                'stop_line',
                'carpark_area',
                'road_divider',
                'lane_divider',
            )
        }
        reach = travel + MARGIN + 60
        heading = rng.uniform(0, 2 * np.pi)
        skew = rng.choice([-1, 1]) * np.radians(rng.uniform(62, 118))
        self.roads = [
            Road(
                _curve(rng, heading, reach, 1.0),
                int(rng.choice([1, 1, 2])),
                rng.uniform(3.0, 3.6),
                float(rng.choice([0, 0, rng.uniform(1.2, 2.8)])),
            ),
            Road(_curve(rng, heading + skew, reach, 0.5), int(rng.choice([1, 1, 2])), rng.uniform(3.0, 3.4), 0.0),
        ]
        self.tee = rng.random() < 0.3  # B ends at A
        self.turn = str(rng.choice(['straight', 'left', 'right'], p=[0.5, 0.25, 0.25]))
        self.skew = skew
        self._route(travel)
        lower = self.route.min(0) - MARGIN
        upper = self.route.max(0) + MARGIN
        self.lower = np.floor(lower)
        self.extent = np.ceil(upper - self.lower)  # metres in x and y
        self._paint()

    # ---- the ego's route ----------------------------------------------------------------------------------------

    def _route(self, travel):
        """Dense polyline of the ego's path over its first ``travel`` metres, with room before and after."""
        rng, a, b = self.rng, self.roads[0], self.roads[1]
        self.b_sign = 0
        if self.turn == 'straight':
            start = rng.uniform(-travel - 8, 8)
            lane = int(rng.integers(0, a.lanes))
            s = np.arange(start - 25, start + travel + 25, 0.25)
            offset = a.lane_offset(lane, True, self.side) + rng.uniform(-0.3, 0.3)
            wobble = 0.12 * np.sin(s / rng.uniform(9, 17) + rng.uniform(0, 6))
            self.route, begin = a.at(s, offset + wobble), 25.0
        else:
            left = self.turn == 'left'
            # the direction along B that leaves to the wanted side
            forward = (self.skew > 0) == left
            self.b_sign = 1 if forward else -1
            near = left != (self.side > 0)  # the turn that does not cross the oncoming lanes
            lane_a = a.lanes - 1 if near else 0
            lane_b = b.lanes - 1 if near else 0
            da, db = a.lane_offset(lane_a, True, self.side), b.lane_offset(lane_b, forward, self.side)
            cut_a = b.half + rng.uniform(4, 7)
            cut_b = a.half + rng.uniform(4, 7)
            before = travel * rng.uniform(0.35, 0.6) - cut_a
            sa = np.arange(-cut_a - max(before, 2) - 25, -cut_a, 0.25)
            sb = self.b_sign * np.arange(cut_b, cut_b + travel + 40, 0.25)
            p0, p1 = a.at(-cut_a, da), b.at(self.b_sign * cut_b, db)
            h0 = a.direction(-cut_a)
            h1 = b.direction(self.b_sign * cut_b) + (0 if forward else np.pi)
            t0, t1 = np.array([np.cos(h0), np.sin(h0)]), np.array([np.cos(h1), np.sin(h1)])
            k = 0.42 * np.linalg.norm(p1 - p0)
            w = np.linspace(0, 1, 120)[:, None]
            bend = (
                (1 - w) ** 3 * p0
                + 3 * (1 - w) ** 2 * w * (p0 + k * t0)
                + 3 * (1 - w) * w**2 * (p1 - k * t1)
                + w**3 * p1
            )
            self.route = np.concatenate([a.at(sa, da), bend, b.at(sb, db)])
            begin = 25.0
        self.route_s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(self.route, axis=0), axis=1))]) - begin
        keep = self.route_s < travel + 25
        self.route, self.route_s = self.route[keep], self.route_s[keep]

    # ---- surfaces -----------------------------------------------------------------------------------------------

    def kind(self, label, material, colours, angle=0.0, scale=1.0) -> int:
        if len(self.kinds) >= 250:  # the raster is uint8: re-use a kind of the same class
            same = [i for i, k in enumerate(self.kinds) if k.label == label]
            return int(self.rng.choice(same))
        index = atlas().index[material]
        self.kinds.append(Kind(label, index, np.asarray(colours, np.float32), float(angle), float(scale)))
        return len(self.kinds) - 1

    def _asphalt(self):
        rng = self.rng
        grey = np.full(3, rng.uniform(0.05, 0.26)) * rng.uniform(0.9, 1.1, 3)
        return self.kind(
            DRIVEABLE,
            str(rng.choice(['asphalt', 'asphalt_mended'])),
            (grey, grey * rng.uniform(0.5, 1.3)),
            rng.uniform(0, 6),
        )

    def _pavement(self, angle):
        rng = self.rng
        base = hsv(rng, (0.0, 0.14), (0.0, 0.18), (0.6, 0.95))
        joint = base * rng.uniform(0.35, 0.75) if rng.random() < 0.7 else base * 1.4
        material = str(rng.choice(['slabs', 'bricks', 'concrete'], p=[0.5, 0.3, 0.2]))
        return self.kind(SIDEWALK, material, (base, joint), angle, rng.uniform(0.8, 1.25))

    def _green(self):
        rng = self.rng
        material = str(rng.choice(['grass', 'meadow', 'dirt', 'gravel'], p=[0.55, 0.35, 0.07, 0.03]))
        if material in ('grass', 'meadow'):
            base = hsv(rng, (0.19, 0.36), (0.5, 0.85), (0.3, 0.6))
            other = hsv(rng, (0.12, 0.3), (0.4, 0.75), (0.25, 0.6))
        else:
            base = hsv(rng, (0.05, 0.11), (0.35, 0.6), (0.25, 0.5))
            other = base * rng.uniform(0.4, 0.8)
        return self.kind(TERRAIN, material, (base, other), rng.uniform(0, 6), rng.uniform(0.8, 1.3))

    def _special(self, angle, where):
        """Surfaces of the class other_flat: bicycle lanes, islands, aprons."""
        rng = self.rng
        if where == 'bike':
            base = hsv(rng, ((0.95, 1.03), (0.53, 0.62))[rng.integers(2)], (0.6, 0.9), (0.4, 0.8))
            return self.kind(OTHER_FLAT, str(rng.choice(['paint', 'studs'])), (base, base * 0.5), angle)
        if where == 'median' and rng.random() < 0.5:
            base = np.full(3, rng.uniform(0.06, 0.25))
            return self.kind(OTHER_FLAT, 'hatch', (base, hsv(rng, (0.1, 0.17), (0, 0.8), (0.7, 0.95))), angle)
        base = hsv(rng, (0.95, 1.05), (0.4, 0.75), (0.35, 0.7))
        material = str(rng.choice(['cobble', 'checker', 'hatch'], p=[0.45, 0.4, 0.15]))
        other = base * rng.uniform(0.25, 0.6) if material != 'checker' else hsv(rng, (0, 0.14), (0, 0.4), (0.2, 0.9))
        return self.kind(OTHER_FLAT, material, (base, other), angle, rng.uniform(0.8, 1.3))

    def _marking(self, yellow=False):
        rng = self.rng
        base = hsv(rng, (0.11, 0.15), (0.6, 0.9), (0.7, 0.95)) if yellow else np.full(3, rng.uniform(0.45, 0.8))
        return self.kind(DRIVEABLE, 'marking', (base, np.full(3, 0.15)))

    def fill(self, polygon, kind, step=None):
        """Draw one polygon into the raster of surfaces and, where ``step`` is given, into that of kerb heights."""
        q = (np.asarray(polygon) - self.lower) / SURFACE_CELL - 0.5
        cv2.fillPoly(self.surface, [np.rint(q * 16).astype(np.int32)], int(kind), shift=4)
        if step is not None:
            q = (np.asarray(polygon) - self.lower) / HEIGHT_CELL
            cv2.fillPoly(self.step, [np.rint(q * 16).astype(np.int32)], float(step), shift=4)

    def _paint(self):
        rng = self.rng
        w, h = (int(np.ceil(v / SURFACE_CELL)) for v in self.extent)
        self.surface = np.zeros((h, w), np.uint8)
        nx, ny = (round(v / HEIGHT_CELL) + 1 for v in self.extent)
        self.step = np.zeros((ny, nx), np.float32)
        self.surface[:] = self._green()
        self.step[:] = rng.uniform(0.0, 0.12)
        for _ in range(14):  # other ground behind the frontages
            centre = self.lower + rng.random(2) * self.extent
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            radius = rng.uniform(8, 28) * (1 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)))
            self.fill(centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), self._green())
        self.segments = [s for road in range(2) for sign in (1, -1) for s in self._cut(road, sign)]
        for name in ('front', 'walk', 'green', 'bike', 'parking'):
            for segment in self.segments:
                if name in segment.strips:
                    self._fill_strip(segment, name)
        asphalt = [self._asphalt(), self._asphalt()]
        for number, road in enumerate(self.roads):
            begin, end = self._span(number)
            self.fill(road.strip(begin, end, -road.half, road.half), asphalt[number], 0.0)
            self.map['drivable_area'].append(road.strip(begin, end, -road.half, road.half))
        self._corners(asphalt[0])
        for number in range(2):
            self._medians(number)
            self._mark(number)
        self._heights()

    def _span(self, number):
        """Stations over which a road exists inside the world."""
        road = self.roads[number]
        lower, upper = road.s[0] + 1, road.s[-1] - 1
        if number == 1 and self.tee:
            keep = self.b_sign or (1 if self.skew > 0 else -1)
            return (0.0, upper) if keep > 0 else (lower, 0.0)
        return lower, upper

    def _cut(self, number, sign):
        rng, road = self.rng, self.roads[number]
        s, end = self._span(number)
        out = []
        while s < end:
            length = min(rng.uniform(12, 30), end - s)
            d, strips = road.half, {}
            for name, chance, low, high in (
                ('parking', 0.75, 2.3, 2.7),
                ('bike', 0.45, 1.6, 2.4),
                ('green', 0.45, 1.2, 2.6),
                ('walk', 0.92, 1.8, 3.8),
            ):
                if rng.random() < chance:
                    width = rng.uniform(low, high)
                    strips[name] = (d, d + width)
                    d += width
            front = str(rng.choice(['lawn', 'paved', 'apron', 'park']))
            width = rng.uniform(2, 7) if front != 'park' else rng.uniform(6, 14)
            if rng.random() < 0.8 or front == 'park':
                strips['front'] = (d, d + width)
            out.append(Segment(number, sign, s, s + length, strips, front))
            s += length
        return out

    def _fill_strip(self, segment, name):
        rng, road = self.rng, self.roads[segment.road]
        inner, outer = (segment.sign * d for d in segment.strips[name])
        angle = float(road.direction((segment.s0 + segment.s1) / 2))
        polygon = road.strip(segment.s0, segment.s1, inner, outer)
        if (polygon.max(0) < self.lower).any() or (polygon.min(0) > self.lower + self.extent).any():
            return
        kerb = float(rng.choice([0.0, 0.03, 0.08, 0.12, 0.15]))
        if name == 'front':
            if segment.front in ('lawn', 'park'):
                self.fill(polygon, self._green(), kerb)
            elif segment.front == 'paved':
                self.fill(polygon, self._pavement(angle), kerb)
                self.map['walkway'].append(polygon)
            else:
                self.fill(polygon, self._special(angle, 'apron'), kerb * 0.5)
        elif name == 'walk':
            self.fill(polygon, self._pavement(angle), kerb)
            self.map['walkway'].append(polygon)
        elif name == 'green':
            self.fill(polygon, self._green(), kerb)
        elif name == 'bike':
            self.fill(polygon, self._special(angle, 'bike'), float(rng.choice([0.0, 0.0, 0.05, 0.1])))
        else:
            self.fill(polygon, self._asphalt(), 0.0)
            self.map['drivable_area'].append(polygon)
            self.map['carpark_area'].append(polygon)

    def _corners(self, asphalt):
        """Round the inner corners of the junction with a disc of asphalt, and sometimes put an island there."""
        a, b = self.roads
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        ring = np.stack([np.cos(angle), np.sin(angle)], 1)
        self.fill(ring * (max(a.half, b.half) + 2.5), asphalt, 0.0)
        self.map['drivable_area'].append(ring * (max(a.half, b.half) + 2.5))

    def _medians(self, number):
        rng, road = self.rng, self.roads[number]
        if road.median <= 0:
            return
        begin, end = self._span(number)
        clear = self.roads[1 - number].half + 9
        for low, high in ((begin, -clear), (clear, end)):
            s = low
            while s < high:
                length = min(rng.uniform(12, 35), high - s)
                half = road.median / 2 - 0.15
                angle = float(road.direction(s + length / 2))
                self.fill(
                    road.strip(s, s + length, -half, half),
                    self._special(angle, 'median'),
                    float(rng.choice([0.0, 0.05, 0.12])),
                )
                s += length + (rng.uniform(2, 6) if rng.random() < 0.3 else 0)

    def _mark(self, number):
        """Lane lines, stop lines and zebra crossings, painted and listed for the map."""
        rng, road, other = self.rng, self.roads[number], self.roads[1 - number]
        begin, end = self._span(number)
        white, middle = self._marking(), self._marking(yellow=rng.random() < 0.5)
        clear = other.half + 5.5
        for low, high in ((begin, -clear), (clear, end)):
            if high - low < 3:
                continue
            edges = [0.0] if road.median <= 0 else [-road.median / 2, road.median / 2]
            for edge in edges:
                self.fill(road.strip(low, high, edge - 0.08, edge + 0.08), middle)
            self.map['road_divider'].append(road.at(np.arange(low, high, 4.0), 0.0))
            for sign in (-1, 1):
                for lane in range(1, road.lanes):
                    d = sign * (road.median / 2 + lane * road.lane_width)
                    for s in np.arange(low, high - 3, 6.0):
                        self.fill(road.strip(s, s + 3, d - 0.08, d + 0.08), white)
                    self.map['lane_divider'].append(road.at(np.arange(low, high, 4.0), d))
                d = sign * (road.half - 0.15)
                self.fill(road.strip(low, high, d - 0.07, d + 0.07), white)
                for lane in range(road.lanes):
                    inner = road.median / 2 + lane * road.lane_width
                    self.map['lane'].append(road.strip(low, high, sign * inner, sign * (inner + road.lane_width)))
            self.map['road_segment'].append((road.strip(low, high, -road.half, road.half), False))
            near = low if low > 0 else high  # the end at the junction
            away = 1 if low > 0 else -1
            zebra = (near - away * 4.0, near - away * 1.0)
            if rng.random() < 0.8:
                for d in np.arange(-road.half + 0.4, road.half - 0.4, 1.1):
                    self.fill(road.strip(*zebra, d, d + 0.55), white)
                self.map['ped_crossing'].append(road.strip(*zebra, -road.half, road.half))
            incoming = -away * self.side  # lanes that run towards the junction lie right of their direction
            self.fill(road.strip(near, near + away * 0.4, 0, -incoming * -road.half), white)
            self.map['stop_line'].append(road.strip(near, near + away * 0.4, 0, incoming * road.half))
        ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        if number == 0:
            radius = max(road.half, other.half) + 4
            self.map['road_segment'].append((radius * np.stack([np.cos(ring), np.sin(ring)], 1), True))

    def _heights(self):
        rng = self.rng
        ny, nx = self.step.shape
        x = self.lower[0] + HEIGHT_CELL * np.arange(nx)
        y = self.lower[1] + HEIGHT_CELL * np.arange(ny)
        relief = np.zeros((ny, nx), np.float32)
        for _ in range(4):
            length, angle = rng.uniform(60, 130), rng.uniform(0, 2 * np.pi)
            phase = 2 * np.pi / length * (np.cos(angle) * x[None] + np.sin(angle) * y[:, None]) + rng.uniform(0, 6.3)
            relief += np.float32(rng.uniform(0.06, 0.16)) * np.sin(phase).astype(np.float32)
        # natural ground is uneven by a centimetre or two, paved ground is not
        rough = cv2.resize(
            rng.standard_normal((ny // 3 + 1, nx // 3 + 1)).astype(np.float32), (nx, ny), interpolation=cv2.INTER_LINEAR
        )
        natural = np.array([k.label == TERRAIN for k in self.kinds], np.float32)
        column = np.clip(((x - self.lower[0]) / SURFACE_CELL).astype(int), 0, self.surface.shape[1] - 1)
        row = np.clip(((y - self.lower[1]) / SURFACE_CELL).astype(int), 0, self.surface.shape[0] - 1)
        wild = natural[self.surface[np.ix_(row, column)]]
        self.heights = np.ascontiguousarray(relief + self.step + 0.014 * rough * wild)

    # ---- questions ----------------------------------------------------------------------------------------------

    def kind_at(self, xy):
        """Index into ``kinds`` at (N, 2) points."""
        x = ((xy[:, 0] - self.lower[0]) * (1 / SURFACE_CELL)).astype(np.int32)
        y = ((xy[:, 1] - self.lower[1]) * (1 / SURFACE_CELL)).astype(np.int32)
        np.clip(x, 0, self.surface.shape[1] - 1, out=x)
        np.clip(y, 0, self.surface.shape[0] - 1, out=y)
        return self.surface[y, x]

    def label_at(self, xy):
        """lidarseg label of the ground at (N, 2) points."""
        return np.array([k.label for k in self.kinds], np.uint8)[self.kind_at(xy)]

    def height_at(self, xy):
        """Bilinear height at (N, 2) points, metres."""
        u = (np.asarray(xy, float) - self.lower) / HEIGHT_CELL
        ny, nx = self.heights.shape
        u = np.clip(u, 0, [nx - 1.000001, ny - 1.000001])
        i = u.astype(np.int64)
        f = u - i
        h = self.heights
        h00, h10 = h[i[:, 1], i[:, 0]], h[i[:, 1], i[:, 0] + 1]
        h01, h11 = h[i[:, 1] + 1, i[:, 0]], h[i[:, 1] + 1, i[:, 0] + 1]
        return (h00 * (1 - f[:, 0]) + h10 * f[:, 0]) * (1 - f[:, 1]) + (h01 * (1 - f[:, 0]) + h11 * f[:, 0]) * f[:, 1]


def _curve(rng, heading, reach, bend):
    """A smooth line through the origin in direction ``heading``, ``reach`` metres both ways, points 0.5 m apart."""
    half = []
    for sign in (1, -1):
        n = int(reach / 0.5)
        curvature = np.zeros(n)
        s = int(rng.uniform(15, 35) / 0.5)  # straight at the junction
        while s < n:
            length = int(rng.uniform(25, 60) / 0.5)
            curvature[s : s + length] = rng.choice([0, 1, -1]) * bend / rng.uniform(55, 160)
            s += length
        curvature = np.convolve(curvature, np.ones(21) / 21, 'same')
        angle = heading + np.cumsum(curvature) * 0.5 * sign
        step = 0.5 * sign * np.stack([np.cos(angle), np.sin(angle)], 1)
        half.append(np.cumsum(step, 0))
    return np.concatenate([half[1][::-1], np.zeros((1, 2)), half[0]])
