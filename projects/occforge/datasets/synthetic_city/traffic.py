"""Who and what is in a scene, and where at which time.

Still things are placed against a raster of blocked ground, so that nothing overlaps and the ego's path stays free.
What stands beside the road is dealt from a shuffled deck that holds every class: each 35 m of road or so sees each
class once, in an order that changes. Moving agents follow lanes or sidewalks; one that would touch another, or the
ego, at any time of the scene is left out.
"""

from typing import NamedTuple

import cv2
import numpy as np

from . import objects as make
from .layout import TERRAIN, Layout
from .objects import Model

BLOCK_CELL = 0.25  # metres
EGO_SIZE = (4.1, 1.75)  # what moving agents keep clear of: length and width of the ego around (1.0, 0) of its frame


class Agent(NamedTuple):
    """A thing in the city; ``path`` None: it stays where it is."""

    model: Model
    pose: tuple[float, float, float]  # x, y, yaw at time 0
    path: object  # callable time -> (x, y, yaw), or None
    attribute: str  # nuScenes attribute, '' for none
    moves: bool


class EgoMotion:
    """Where the ego is: follows the route with a speed that changes, sometimes to a stop."""

    def __init__(self, rng, duration):
        cruise = rng.uniform(2.6, 6.2)
        knots_t, knots_v = [0.0], [cruise * rng.uniform(0.5, 1.1)]
        t = 0.0
        if rng.random() < 0.4:
            t = rng.uniform(0.15, 0.6) * duration
            knots_t += [t, t + 1.5, t + 1.5 + rng.uniform(0.8, 2.2)]
            knots_v += [cruise, 0.0, 0.0]
            t = knots_t[-1] + 1.8
            knots_t.append(t)
            knots_v.append(cruise)
        while t < duration + 1:
            t += rng.uniform(2, 4)
            knots_t.append(t)
            knots_v.append(cruise * rng.uniform(0.75, 1.2))
        self.t = np.arange(-0.5, duration + 1.0, 0.01)
        v = np.interp(self.t, knots_t, knots_v)
        v = np.convolve(np.pad(v, 30, mode='edge'), np.ones(61) / 61, 'valid')
        self.s = np.concatenate([[0], np.cumsum((v[1:] + v[:-1]) / 2 * 0.01)])
        self.s -= np.interp(0.0, self.t, self.s)
        self.travel = float(np.interp(duration, self.t, self.s))
        self.sway = rng.uniform(0.0, 6.3, 4)
        self.layout = None

    def place(self, layout: Layout):
        self.layout = layout

    def flat(self, t):
        """x, y, yaw at time t, seconds."""
        s = np.interp(t, self.t, self.s)
        route, rs = self.layout.route, self.layout.route_s
        x, y = (np.interp([s - 0.6, s, s + 0.6], rs, route[:, k]) for k in (0, 1))
        return x[1], y[1], float(np.arctan2(y[2] - y[0], x[2] - x[0]))

    def pose(self, t):
        """(4, 4) ego to the scene's frame: on its wheels, plus a little suspension."""
        x, y, yaw = self.flat(t)
        c, s = np.cos(yaw), np.sin(yaw)
        wheels = np.array([(2.6, 0.8), (2.6, -0.8), (0, 0.8), (0, -0.8)])
        world = np.stack([x + c * wheels[:, 0] - s * wheels[:, 1], y + s * wheels[:, 0] + c * wheels[:, 1]], 1)
        z = self.layout.height_at(world)
        swing = np.radians(0.2)
        pitch = np.arctan((z[0] + z[1] - z[2] - z[3]) / 2 / 2.6) + swing * np.sin(2.1 * t + self.sway[0])
        roll = np.arctan((z[0] + z[2] - z[1] - z[3]) / 2 / 1.6) + swing * np.sin(2.9 * t + self.sway[1])
        pose = np.eye(4)
        pose[:3, :3] = make.rotation(np.degrees(yaw), np.degrees(pitch), np.degrees(roll))
        pose[:3, 3] = x, y, (z[2] + z[3]) / 2
        return pose


class Town:
    """Fills a layout with agents."""

    def __init__(self, rng, layout: Layout, ego: EgoMotion, duration):
        self.rng, self.layout, self.ego, self.duration = rng, layout, ego, duration
        self.agents: list[Agent] = []
        nx, ny = (int(np.ceil(v / BLOCK_CELL)) for v in layout.extent)
        self.blocked = np.zeros((ny, nx), np.uint8)
        self.times = np.arange(0, duration + 0.26, 0.25)
        self.tracks = [self._track(ego.flat, EGO_SIZE, 1.0)]
        path = layout.route
        q = np.rint((path - layout.lower) / BLOCK_CELL * 16).astype(np.int32)
        cv2.polylines(self.blocked, [q.reshape(-1, 1, 2)], False, 1, thickness=int(2.5 / BLOCK_CELL), shift=4)
        self.near = path[::20]  # the populated area is around these points
        self._buildings()
        self._roadside()
        self._moving()
        self._furniture()
        self._people()

    # ---- placing ------------------------------------------------------------------------------------------------

    def _elsewhere(self, number, xy) -> bool:
        """Whether a place beside road ``number`` lies on or hard by the other road."""
        other = self.layout.roads[1 - number]
        begin, end = self.layout._span(1 - number)
        line = other.points[(other.s >= begin - 1) & (other.s <= end + 1)]
        return bool(np.linalg.norm(line - xy, axis=1).min() < other.half + 1.0)

    def _distance(self, xy):
        return np.linalg.norm(self.near - np.asarray(xy), axis=1).min()

    def _footprint(self, model, x, y, yaw, margin=0.1):
        a, b = model.size[0] / 2 + margin, model.size[1] / 2 + margin
        c, s = np.cos(yaw), np.sin(yaw)
        corners = np.array([(a, b), (-a, b), (-a, -b), (a, -b)]) + model.offset[:2]
        return np.stack([x + c * corners[:, 0] - s * corners[:, 1], y + s * corners[:, 0] + c * corners[:, 1]], 1)

    def _claim(self, polygon, only=None, test=True) -> bool:
        """Block a polygon if it is inside the world, free, and (``only``) entirely on ground of these labels."""
        q = (polygon - self.layout.lower) / BLOCK_CELL
        low, high = np.floor(q.min(0)).astype(int) - 1, np.ceil(q.max(0)).astype(int) + 2
        if (low < 0).any() or high[0] > self.blocked.shape[1] or high[1] > self.blocked.shape[0]:
            return False
        patch = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(patch, [np.rint((q - low) * 16).astype(np.int32)], 1, shift=4)
        window = self.blocked[low[1] : high[1], low[0] : high[0]]
        if test and (window & patch).any():
            return False
        if only is not None:
            rows, cols = np.nonzero(patch)
            points = self.layout.lower + (np.stack([cols, rows], 1) + low + 0.5) * BLOCK_CELL
            if not np.isin(self.layout.label_at(points), only).all():
                return False
        window |= patch
        return True

    def stand(self, model, x, y, yaw, attribute='', margin=0.1, only=None, test=True) -> bool:
        """Place something that does not move; False if there is no room."""
        if not self._claim(self._footprint(model, x, y, yaw, margin), only, test):
            return False
        self.agents.append(Agent(model, (float(x), float(y), float(yaw)), None, attribute, False))
        return True

    def _track(self, path, size, ahead=0.0):
        """Discs that cover an agent over time: centres (T, 3, 2), radius."""
        at = np.array([path(t) for t in self.times])
        reach = max(size[0] / 2 - size[1] / 2, 0)
        along = np.stack([np.cos(at[:, 2]), np.sin(at[:, 2])], 1)
        centres = at[:, None, :2] + (np.array([-reach, 0, reach]) + ahead)[None, :, None] * along[:, None]
        return centres, float(np.hypot(size[1] / 2, min(reach, size[1]) / 2) + 0.1)

    def drive(self, model, path, attribute, still_too=True) -> bool:
        """Add an agent that follows ``path`` if it never touches another one, the ego or something that stands."""
        centres, radius = self._track(path, model.size[:2])
        flat = centres.reshape(-1, 2)
        lower, upper = self.layout.lower + 3, self.layout.lower + self.layout.extent - 3
        if (flat < lower).any() or (flat > upper).any():
            return False
        for other, reach in self.tracks:
            gap = np.linalg.norm(centres[:, :, None] - other[:, None], axis=-1)
            if gap.min() < radius + reach + 0.15:
                return False
        if still_too:
            ring = radius * 0.8 * np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)])
            points = (flat[:, None] + ring).reshape(-1, 2)
            index = ((points - self.layout.lower) / BLOCK_CELL).astype(int)
            if self.still[index[:, 1], index[:, 0]].any():
                return False
        self.tracks.append((centres, radius))
        self.agents.append(Agent(model, path(0.0), path, attribute, True))
        return True

    # ---- buildings and walls ------------------------------------------------------------------------------------

    def _buildings(self):
        rng, layout = self.rng, self.layout
        ground = (make.LABEL['flat.terrain'], make.LABEL['flat.sidewalk'], make.LABEL['flat.other'])
        edges = {}
        for segment in layout.segments:
            outer = max((d[1] for d in segment.strips.values()), default=layout.roads[segment.road].half + 1)
            if segment.front == 'park':
                continue
            key = (segment.road, segment.sign)
            road, s = layout.roads[segment.road], max(segment.s0, edges.get(key, -1e9))
            while s < segment.s1 - 3:
                length, width = rng.uniform(7, 18), rng.uniform(7, 12)
                middle = s + length / 2
                d = outer + rng.uniform(0.8, 2.0) + width / 2
                spot = road.at(middle, segment.sign * d)
                s += length + rng.uniform(0.3, 5)
                edges[key] = s
                if self._distance(spot) > 75 or rng.random() < 0.12:
                    continue
                yaw = road.direction(middle) + (0 if segment.sign > 0 else np.pi)
                model = make.building(rng, length, width)
                self.stand(model, *spot, yaw, margin=0.0, only=ground)
        for segment in layout.segments:  # along the back of the sidewalk
            if rng.random() > 0.5 or 'walk' not in segment.strips or segment.front not in ('lawn', 'park', 'apron'):
                continue
            road, d = layout.roads[segment.road], segment.strips['walk'][1] + 0.5
            style = str(rng.choice(['fence', 'bars', 'low', 'wall', 'hedge'], p=[0.15, 0.15, 0.2, 0.1, 0.4]))
            colours = (make.wall_colour(rng), make.dark(rng))
            leaves, height = make.leaf_colours(rng), rng.uniform(0.8, 1.9)
            for s in np.arange(segment.s0 + 1.5, segment.s1 - 1.5, 3.0):
                spot = road.at(s, segment.sign * d)
                if self._distance(spot) > 60 or rng.random() < 0.12:
                    continue
                if style == 'hedge':
                    model = make.hedge_piece(rng, 3.05, leaves, height)
                else:
                    model = make.wall_piece(rng, 3.05, style, colours)
                self.stand(model, *spot, road.direction(s), margin=-0.12, only=ground)

    # ---- beside the road ----------------------------------------------------------------------------------------

    def _roadside(self):
        rng, layout = self.rng, self.layout
        deck_cards = [
            'cars',
            'truck',
            'works',
            'bus',
            'bikes',
            'trailer',
            'cars',
            'motorcycles',
            'works',
            'others',
            'machine',
        ]
        for number, road in enumerate(layout.roads):
            for sign in (1, -1):
                begin, end = layout._span(number)
                deck, s = [], begin
                while s < end:
                    spot = road.at(s, sign * road.half)
                    if self._distance(spot) > 48 or self._elsewhere(number, spot):
                        s += 3
                        continue
                    if not deck:
                        deck = [str(c) for c in rng.permutation(deck_cards)]
                    s += self._deal(deck.pop(), number, sign, s) + rng.uniform(0.6, 2.5)

    def _strips(self, number, sign, s):
        for segment in self.layout.segments:
            if segment.road == number and segment.sign == sign and segment.s0 <= s < segment.s1:
                return segment
        return None

    def _deal(self, card, number, sign, s) -> float:
        """Place one card's things from station s on; returns the metres used."""
        rng, road = self.rng, self.layout.roads[number]
        segment = self._strips(number, sign, s)
        if segment is None:
            return 3.0
        strips = segment.strips
        lane = strips.get('parking')
        wide = next((strips[n] for n in ('front', 'walk') if n in strips and strips[n][1] - strips[n][0] > 2.6), None)
        with_traffic = 0 if (sign < 0) == (self.layout.side > 0) else np.pi

        def put(model, at, d, turn=0.0, attribute='', **rest):
            x, y = road.at(at, sign * d)
            if self._elsewhere(number, (x, y)):
                return False
            return self.stand(model, x, y, road.direction(at) + turn, attribute, **rest)

        def park(model, at, attribute='vehicle.parked'):
            flip = with_traffic + (np.pi if rng.random() < 0.12 else 0) + np.radians(rng.normal(0, 2))
            length = model.size[0]
            if lane is not None:
                middle = (lane[0] + lane[1]) / 2 + rng.normal(0, 0.12)
                middle = max(middle, lane[0] + model.size[1] / 2 - 0.25)
                return put(model, at + length / 2, middle, flip, attribute, margin=0.2)
            if wide is not None:
                if wide[1] - wide[0] > 5.5 and length < 6:
                    return put(model, at + 1.5, (wide[0] + wide[1]) / 2, flip + np.pi / 2, attribute, margin=0.2)
                return put(model, at + length / 2, wide[0] + 1.6, flip, attribute, margin=0.2)
            return False

        if card == 'cars':
            used = 0.0
            for _ in range(int(rng.integers(2, 4))):
                model = make.car(rng)
                park(model, s + used)
                used += model.size[0] + rng.uniform(0.7, 1.8)
            return used
        if card in ('truck', 'bus', 'trailer', 'machine'):
            build = {
                'truck': make.truck,
                'bus': make.bus,
                'trailer': make.trailer,
                'machine': make.construction_vehicle,
            }
            model = build[card](rng)
            placed = park(model, s)
            if placed and card == 'trailer' and rng.random() < 0.5:
                tractor = make.truck(rng)
                park(tractor, s + model.size[0] + 0.6)
                return model.size[0] + tractor.size[0] + 0.6
            return model.size[0] if placed else 4.0
        if card == 'works':
            return self._works(road, sign, s, lane or wide, put, with_traffic)
        if card == 'bikes' or card == 'motorcycles':
            strip = next((strips[n] for n in ('green', 'walk', 'front', 'bike') if n in strips), lane)
            if strip is None:
                return 2.0
            count = int(rng.integers(4, 8))
            for k in range(count):
                rider = make.bicycle(rng) if card == 'bikes' else make.motorcycle(rng)
                tilt = np.pi / 2 + np.radians(rng.normal(0, 8))
                d = strip[0] + 1.0 + rng.uniform(0, 0.25)
                put(rider, s + 0.3 + 0.85 * k, d, tilt, 'cycle.without_rider', margin=-0.05)
            return 0.85 * count
        strip = next((strips[n] for n in ('walk', 'front', 'green') if n in strips), lane)  # others
        if strip is None:
            return 2.0
        used = 0.0
        for _ in range(int(rng.integers(3, 6))):
            build = [
                make.dumpster,
                make.dumpster,
                make.dumpster,
                make.push_cart,
                make.debris,
                make.mailbox,
                make.bench,
                make.animal,
            ]
            model = build[int(rng.integers(len(build)))](rng)
            turn = rng.choice([0, np.pi / 2]) + np.radians(rng.normal(0, 8))
            d = strip[0] + 0.8 + rng.uniform(0, max(strip[1] - strip[0] - 1.2, 0.1))
            put(model, s + used + 0.8, d, turn)
            used += rng.uniform(1.6, 2.6)
        return used

    def _works(self, road, sign, s, strip, put, with_traffic):
        """A fenced-off site: barriers, cones, often a machine and workers."""
        rng = self.rng
        if strip is None:
            return 3.0
        machine = make.construction_vehicle(rng) if rng.random() < 0.55 else None
        length = (machine.size[0] if machine else 4.0) + rng.uniform(5, 8)
        style = str(rng.choice(['jersey', 'plank', 'water']))
        middle = (strip[0] + min(strip[1], strip[0] + 3.2)) / 2
        if machine is not None:
            turn = with_traffic + rng.choice([0, np.pi]) + np.radians(rng.normal(0, 8))
            put(machine, s + length / 2, middle + 0.1, turn, 'vehicle.stopped')
        for at in np.arange(s + 1.2, s + length - 1, 2.35):
            put(
                make.barrier(rng, style),
                at,
                strip[0] - 0.15 + rng.normal(0, 0.06),
                np.pi / 2 + np.radians(rng.normal(0, 4)),
                margin=-0.05,
            )
        for end in (s, s + length):
            put(make.barrier(rng, style), end, middle, np.radians(rng.normal(0, 6)), margin=-0.05)
        for _ in range(int(rng.integers(9, 15))):
            at = s + length / 2 + rng.uniform(-0.7, 0.7) * length
            d = strip[0] + rng.choice([-0.5, -0.5, 0.35, 1.2, 2.2]) + rng.normal(0, 0.15)
            put(make.traffic_cone(rng), at, d, rng.uniform(0, 1.5), margin=0.05)
        for _ in range(int(rng.integers(1, 4))):
            model = make.pedestrian(rng, 'human.pedestrian.construction_worker')
            put(
                model,
                s + rng.uniform(0, length),
                middle + rng.uniform(-1, 1.5),
                rng.uniform(0, 6),
                'pedestrian.standing',
            )
        if rng.random() < 0.7:
            put(make.debris(rng), s + rng.uniform(1, length - 1), middle + rng.uniform(-0.5, 1), rng.uniform(0, 6))
        return length

    # ---- traffic ------------------------------------------------------------------------------------------------

    def _moving(self):
        rng, layout = self.rng, self.layout
        ground = np.ones((3, 3), np.uint8)
        self.still = np.zeros_like(self.blocked)  # what stands, without the ego's corridor
        for agent in self.agents:
            q = (self._footprint(agent.model, *agent.pose, 0.0) - layout.lower) / BLOCK_CELL
            cv2.fillPoly(self.still, [np.rint(q * 16).astype(np.int32)], 1, shift=4)
        self.still = cv2.dilate(self.still, ground)
        cards = ['car', 'car', 'truck', 'bus', 'motorcycle', 'car', 'rig', 'car', 'motorcycle']
        for number, road in enumerate(layout.roads):
            begin, end = layout._span(number)
            for forward in (True, False):
                for lane in range(road.lanes):
                    offset = road.lane_offset(lane, forward, layout.side)
                    deck, s = [], begin + rng.uniform(0, 10)
                    speed = rng.uniform(3, 9) * (1 if forward else -1)
                    with_ego = number == 0 and forward
                    while s < end:
                        if not deck:
                            deck = [str(c) for c in rng.permutation(cards)]
                        card, at = deck.pop(), s
                        s += rng.uniform(11, 24) + (10 if card == 'rig' else 0)
                        if self._distance(road.at(at, 0)) > 70:
                            deck.append(card)
                            continue
                        self._vehicle(card, road, at, offset, forward, speed, with_ego, number)
                self._cyclists(number, road, forward)

    def _lane_path(self, road, s0, offset, forward, speed, with_ego):
        ego = self.ego

        def path(t):
            s = s0 + (np.interp(t, ego.t, ego.s) if with_ego else speed * t)
            x, y = road.at(s, offset)
            return float(x), float(y), float(road.direction(s) + (0 if forward else np.pi))

        return path

    def _vehicle(self, card, road, s, offset, forward, speed, with_ego, number):
        rng = self.rng
        waits = number == 1 and rng.random() < 0.7  # the side road waits at its stop line
        speed = 0.0 if waits else speed
        offset = offset + rng.normal(0, 0.15)
        build = {'car': make.car, 'truck': make.truck, 'bus': make.bus, 'rig': make.truck}
        model = make.motorcycle(rng, rider=True) if card == 'motorcycle' else build[card](rng)
        attribute = 'cycle.with_rider' if card == 'motorcycle' else 'vehicle.stopped' if waits else 'vehicle.moving'
        path = self._lane_path(road, s, offset, forward, speed, with_ego and not waits)
        if not self.drive(model, path, attribute) or card != 'rig':
            return
        load = make.trailer(rng)
        gap = (model.size[0] + load.size[0]) / 2 + 0.4
        behind = s - gap if forward else s + gap
        self.tracks_skip = self.tracks.pop()  # a trailer may come as near to its tractor as it likes
        self.drive(load, self._lane_path(road, behind, offset, forward, speed, with_ego and not waits), attribute)
        self.tracks.append(self.tracks_skip)

    def _cyclists(self, number, road, forward):
        rng, layout = self.rng, self.layout
        sign = -layout.side if forward else layout.side
        for segment in layout.segments:
            if segment.road != number or segment.sign != sign:
                continue
            strip = segment.strips.get('bike')
            d = (strip[0] + strip[1]) / 2 if strip else road.half - 0.5
            for _ in range(2):
                s = rng.uniform(segment.s0, segment.s1)
                if self._distance(road.at(s, 0)) > 45 or rng.random() < (0.2 if strip else 0.55):
                    continue
                speed = rng.uniform(1.5, 4.0) * (1 if forward else -1)
                kind = rng.random()
                if kind < 0.62:
                    model = make.bicycle(rng, rider=True)
                elif kind < 0.85:
                    model = make.motorcycle(rng, rider=True)
                else:
                    model = make.scooter_rider(rng)
                attribute = 'cycle.with_rider' if kind < 0.85 else 'pedestrian.moving'
                self.drive(model, self._lane_path(road, s, sign * d, forward, speed, False), attribute)

    # ---- trees, poles and people --------------------------------------------------------------------------------

    def _keep_clear(self):
        """Still things placed from here on must not stand where agents drive."""
        for centres, radius in self.tracks[1:]:
            for centre in centres.reshape(-1, 2):
                q = (centre - self.layout.lower) / BLOCK_CELL
                cv2.circle(self.blocked, tuple(int(v) for v in q), int(np.ceil((radius + 0.1) / BLOCK_CELL)), 1, -1)

    def _furniture(self):
        rng, layout = self.rng, self.layout
        self._keep_clear()
        small = [
            make.road_sign,
            make.bollard,
            make.cabinet,
            make.column,
            make.shrub,
            make.bush,
            make.shrub,
            make.mailbox,
            make.bench,
        ]
        for segment in layout.segments:
            road, sign = layout.roads[segment.road], segment.sign
            kerb = next((segment.strips[n] for n in ('green', 'walk', 'front') if n in segment.strips), None)
            if kerb is None:
                continue
            inward = road.direction
            rows = rng.random() < 0.25
            s = segment.s0 + rng.uniform(0.5, 3)
            while s < segment.s1:
                spot = road.at(s, sign * (kerb[0] + rng.uniform(0.35, 0.8)))
                step = rng.uniform(2.2, 5.5)
                if self._distance(spot) < 60 and not self._elsewhere(segment.road, spot):
                    pick = rng.random()
                    yaw = inward(s) + rng.choice([0, np.pi])
                    if rows:
                        model = make.bollard(rng) if rng.random() < 0.6 else make.shrub(rng)
                        step = rng.uniform(1.4, 2.2)
                    elif pick < 0.42:
                        model = make.tree(rng)
                        trunk = make.bollard(rng)  # only the trunk needs room on the ground
                        if self._claim(self._footprint(trunk, *spot, 0.0, 0.25)):
                            self.agents.append(
                                Agent(
                                    model, (float(spot[0]), float(spot[1]), float(rng.uniform(0, 6))), None, '', False
                                )
                            )
                        s += step
                        continue
                    elif pick < 0.54:
                        model, yaw = make.lamp_post(rng), inward(s) - sign * np.pi / 2
                        if self._claim(self._footprint(make.bollard(rng), *spot, 0.0, 0.1)):
                            self.agents.append(
                                Agent(model, (float(spot[0]), float(spot[1]), float(yaw)), None, '', False)
                            )
                        s += step
                        continue
                    else:
                        model = small[int(rng.integers(len(small)))](rng)
                    self.stand(model, *spot, yaw, margin=0.05)
                s += step
            if rng.random() < 0.15 and 'walk' in segment.strips:
                s = (segment.s0 + segment.s1) / 2
                spot = road.at(s, sign * (segment.strips['walk'][0] + 1.1))
                self._elsewhere(segment.road, spot) or self.stand(
                    make.shelter(rng), *spot, inward(s) + sign * np.pi / 2
                )
            # behind: trees and bushes on open ground
            front = segment.strips.get('front')
            if front is not None and segment.front in ('lawn', 'park'):
                for _ in range(int(rng.integers(1, 4 if segment.front == 'lawn' else 9))):
                    s, d = rng.uniform(segment.s0, segment.s1), rng.uniform(front[0] + 0.6, front[1] + 2)
                    spot = road.at(s, sign * d)
                    if self._distance(spot) > 60:
                        continue
                    build = make.tree if rng.random() < 0.4 else make.bush if rng.random() < 0.6 else make.shrub
                    model = build(rng)
                    if build is make.tree:
                        if self._claim(self._footprint(make.bollard(rng), *spot, 0.0, 0.3), (TERRAIN,)):
                            self.agents.append(
                                Agent(
                                    model, (float(spot[0]), float(spot[1]), float(rng.uniform(0, 6))), None, '', False
                                )
                            )
                    else:
                        self.stand(model, *spot, rng.uniform(0, 6), only=(TERRAIN,))
        for number, road in enumerate(layout.roads):  # signals at the junction
            other = layout.roads[1 - number]
            for end in (-1, 1):
                s = end * (other.half + 4)
                for sign in (-1, 1):
                    spot = road.at(s, sign * (road.half + 0.9))
                    if rng.random() < 0.7 and layout.label_at(spot[None])[0] != make.LABEL['flat.driveable_surface']:
                        yaw = road.direction(s) + (np.pi if end > 0 else 0)
                        self._claim(self._footprint(make.bollard(rng), *spot, 0.0, 0.1), test=False)
                        self.agents.append(
                            Agent(
                                make.traffic_light(rng), (float(spot[0]), float(spot[1]), float(yaw)), None, '', False
                            )
                        )

    def _people(self):
        rng, layout = self.rng, self.layout
        self._moving_still()
        for segment in layout.segments:
            road, sign = layout.roads[segment.road], segment.sign
            for name, count in (('walk', 5), ('front', 2)):
                strip = segment.strips.get(name)
                if strip is None:
                    continue
                for _ in range(int(rng.integers(count // 2, count + 2))):
                    s, d = (
                        rng.uniform(segment.s0, segment.s1),
                        rng.uniform(strip[0] + 0.4, max(strip[1] - 0.4, strip[0] + 0.5)),
                    )
                    if self._distance(road.at(s, 0)) > 42:
                        continue
                    if rng.random() < 0.5:
                        x, y = road.at(s, sign * d)
                        if self._elsewhere(segment.road, (x, y)):
                            continue
                        model = make.animal(rng) if rng.random() < 0.08 else make.pedestrian(rng)
                        attribute = '' if model.category == 'animal' else 'pedestrian.standing'
                        self.stand(model, x, y, rng.uniform(0, 6.28), attribute)
                    else:
                        forward = rng.random() < 0.5
                        speed = rng.uniform(0.6, 1.6) * (1 if forward else -1)
                        path = self._lane_path(road, s, sign * d, forward, speed, False)
                        self.drive(make.pedestrian(rng), path, 'pedestrian.moving')

    def _moving_still(self):
        """Refresh the raster of still things with the furniture."""
        for agent in self.agents:
            if agent.path is None:
                model = agent.model
                tall = (model.category == 'static.vegetation' and model.size[2] > 3) or model.size[2] > 5
                if tall and model.size[0] < 9:
                    continue  # crowns and arms hang above
                q = (self._footprint(model, *agent.pose, 0.0) - self.layout.lower) / BLOCK_CELL
                cv2.fillPoly(self.still, [np.rint(q * 16).astype(np.int32)], 1, shift=4)
