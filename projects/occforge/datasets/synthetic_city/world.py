"""One scene of the city: its layout, its agents, and the solids at any moment."""

from typing import NamedTuple

import numpy as np
import torch

from occforge.ops.scene_cast import CONE, Scene, tile_maxima

from .layout import HEIGHT_CELL, Layout
from .objects import ANNOTATED, LABEL, hsv
from .textures import atlas
from .traffic import EgoMotion, Town

KEYFRAME_STEP = 0.5  # seconds between key frames
SWEEP_STEP = 0.05  # seconds between turns of the LiDAR
SWEEPS = 10  # turns per key frame


class Light(NamedTuple):
    """Sun, sky and camera settings of a scene; colours linear RGB."""

    sun: np.ndarray  # (3,) unit vector towards the sun
    sun_colour: np.ndarray
    sky_colour: np.ndarray
    horizon_colour: np.ndarray
    clouds: float
    visibility: float  # metres of haze
    exposure: float
    noise: float


class Moment(NamedTuple):
    """The city at one time."""

    time: float
    scene: Scene  # solids and ground, for casting rays
    rows: np.ndarray  # (P, 20) primitive table
    place: np.ndarray  # (A, 4) x, y, z, yaw of the agents
    ego: np.ndarray  # (4, 4) ego to scene


class World:
    """A scene, fully determined by (seed, index, keyframes).

    Args:
        seed: of the city.
        index: number of the scene in the city.
        keyframes: how many key frames the scene lasts.
        right_hand: whether traffic keeps right.
    """

    def __init__(self, seed: int, index: int, keyframes: int, right_hand: bool = True):
        rng = np.random.default_rng([seed, index])
        self.seed, self.index = seed, index
        self.duration = (keyframes - 1) * KEYFRAME_STEP
        self.ego = EgoMotion(rng, self.duration)
        self.layout = Layout(rng, self.ego.travel, 1 if right_hand else -1)
        self.ego.place(self.layout)
        self.town = Town(rng, self.layout, self.ego, self.duration)
        self.light = _light(rng)
        self._collect()

    def _collect(self):
        agents = sorted(self.town.agents, key=lambda agent: agent.path is not None)
        self.agents = agents
        self.still = sum(agent.path is None for agent in agents)
        models = [agent.model for agent in agents]
        self.owner = np.repeat(np.arange(len(agents)), [len(m.kind) for m in models])
        self.part = {
            name: np.concatenate([getattr(m, name) for m in models])
            for name in ('kind', 'centre', 'rotation', 'half', 'top', 'shift', 'material', 'colour')
        }
        self.label = np.array([LABEL[m.category] for m in models], np.uint8)
        self.boxed = np.array([m.category in ANNOTATED for m in models])
        self.size = np.array([m.size for m in models])
        self.offset = np.array([m.offset for m in models])
        self.maxima = tile_maxima(torch.from_numpy(self.layout.heights))
        self.split = int(np.searchsorted(self.owner, self.still))
        place = np.array([agent.pose for agent in agents], float)
        self._still_place = self._stand(place[: self.still], slice(0, self.still))
        for number in np.flatnonzero(self.size[: self.still, :2].max(1) > 5):  # buildings rest on their lowest corner
            if self.agents[number].model.category == 'static.manmade':
                x, y, yaw = place[number]
                a, b = self.size[number, :2] / 2
                corners = np.array([(a, b), (-a, b), (-a, -b), (a, -b)])
                turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
                self._still_place[number, 2] = self.layout.height_at(corners @ turn + (x, y)).min()
        self._still_rows = self._rows(self._still_place, 0, self.split)
        self._shading()

    def _stand(self, place, which):
        """Heights for agents at x, y, yaw: (A, 4) x, y, z, yaw."""
        reach = self.size[which, 0] * 0.3
        along = np.stack([np.cos(place[:, 2]), np.sin(place[:, 2])], 1) * reach[:, None]
        heights = [self.layout.height_at(place[:, :2] + sign * along) for sign in (-1, 1)]
        return np.stack([place[:, 0], place[:, 1], (heights[0] + heights[1]) / 2, place[:, 2]], 1)

    def places(self, t) -> np.ndarray:
        """(A, 4) x, y, z, yaw of all agents at time t."""
        moving = self.agents[self.still :]
        if not moving:
            return self._still_place
        place = np.array([agent.path(t) for agent in moving], float)
        return np.concatenate([self._still_place, self._stand(place, slice(self.still, None))])

    def _rows(self, place, begin, end):
        part = {name: value[begin:end] for name, value in self.part.items()}
        at = place[self.owner[begin:end] - self.owner[begin]] if end > begin else np.zeros((0, 4))
        c, s = np.cos(at[:, 3]), np.sin(at[:, 3])
        x, y, z = part['centre'].T
        rows = np.zeros((end - begin, 20))
        rows[:, 0] = part['kind']
        rows[:, 1], rows[:, 2], rows[:, 3] = at[:, 0] + c * x - s * y, at[:, 1] + s * x + c * y, at[:, 2] + z
        local = part['rotation']  # part to object; its transpose after the object's turn leads from world to part
        turned = local.copy()
        turned[:, 0] = c[:, None] * local[:, 0] - s[:, None] * local[:, 1]
        turned[:, 1] = s[:, None] * local[:, 0] + c[:, None] * local[:, 1]
        rows[:, 4:13] = turned.transpose(0, 2, 1).reshape(-1, 9)
        rows[:, 13:16], rows[:, 16:18], rows[:, 18] = part['half'], part['top'], part['shift']
        return rows

    def at(self, t) -> Moment:
        """The city at time t, seconds after the first key frame."""
        place = self.places(t)
        moving = self._rows(place[self.still :], self.split, len(self.owner))
        rows = np.concatenate([self._still_rows, moving])
        scene = Scene(
            torch.from_numpy(rows), torch.from_numpy(self.layout.heights), tuple(self.layout.lower), HEIGHT_CELL,
            self.maxima,
        )  # fmt: skip
        return Moment(t, scene, rows, place, self.ego.pose(t))

    def boxes(self, place) -> np.ndarray:
        """(A, 7) boxes x, y, z of the centre, length, width, height, yaw, at the agents' places."""
        c, s = np.cos(place[:, 3]), np.sin(place[:, 3])
        x, y, z = self.offset.T
        centre = [place[:, 0] + c * x - s * y, place[:, 1] + s * x + c * y, place[:, 2] + z]
        return np.column_stack([*centre, self.size, place[:, 3]])

    def _shading(self):
        """Per surface row (solids, then kinds of ground): material, texture scale, colours, reflectance."""
        book, half, kind = atlas(), self.part['half'], self.part['kind']
        count, kinds = len(kind), self.layout.kinds
        radius = np.where(kind == CONE, np.maximum(half[:, 0], half[:, 1]), half[:, 0])
        around = 2 * np.pi * radius
        box = kind == 0
        width = np.stack([
            np.where(box, 2 * half[:, 1], around), np.where(box, 2 * half[:, 0], around),
            np.where(box, 2 * half[:, 0], 2 * radius),
        ], 1)  # fmt: skip
        tall = np.where(kind == 2, np.pi * half[:, 2], 2 * half[:, 2])
        height = np.stack([tall, tall, np.where(box, 2 * half[:, 1], 2 * radius)], 1)
        self.material = np.zeros((count + len(kinds), 3), np.int32)
        self.material[:count] = self.part['material']
        self.material[count:] = np.array([k.material for k in kinds])[:, None]
        tile = book.tile[self.material]
        extent = np.ones((count + len(kinds), 3, 2), np.float32)
        extent[:count, :, 0], extent[:count, :, 1] = width, height
        repeat = np.where(tile > 0, 1 / np.maximum(tile, 1e-6), 1 / np.maximum(extent, 1e-6)).astype(np.float32)
        repeat[count:] *= np.array([k.scale for k in kinds], np.float32)[:, None, None]
        self.repeat = repeat
        angle = np.concatenate([np.zeros(count), [k.angle for k in kinds]])
        self.turn = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        self.colour = np.concatenate([self.part['colour'], np.array([k.colours for k in kinds])]).astype(np.float32)
        self.surface_label = np.concatenate([self.label[self.owner], [k.label for k in kinds]]).astype(np.uint8)
        # Paint, wear and moisture make things of one material reflect a laser differently: a factor of each object and
        # kind of ground, which neither the points of a scene nor its sweeps average out.
        draw = np.random.default_rng([self.seed, self.index, 3]).lognormal(0, 0.5, len(self.agents) + len(kinds))
        self.reflectance = np.concatenate([draw[self.owner], draw[len(self.agents) :]]).astype(np.float32)

    def surface_rows(self, primitive, uv):
        """Row of every hit in the tables of :meth:`_shading`; ``primitive`` (N,) >= 0, ``uv`` (N, 2)."""
        rows = primitive.astype(np.int64)
        ground = rows == len(self.owner)
        rows[ground] += self.layout.kind_at(uv[ground])
        return rows


def _light(rng) -> Light:
    elevation, azimuth = np.radians(rng.uniform(22, 68)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    overcast = float(rng.choice([0.0, rng.uniform(0.2, 0.95)], p=[0.55, 0.45]))
    warm = np.array([1.0, rng.uniform(0.82, 0.97), rng.uniform(0.62, 0.92)])
    blue = hsv(rng, (0.54, 0.62), (0.25, 0.6), (0.75, 1.0))
    grey = np.full(3, rng.uniform(0.45, 0.75))
    sky = blue * (1 - overcast) + grey * overcast
    return Light(
        sun, warm * 2.1 * (1 - 0.93 * overcast), sky * rng.uniform(0.75, 1.1),
        sky * 0.4 + np.array([0.5, 0.5, 0.52]) * rng.uniform(0.8, 1.1), overcast, rng.uniform(180, 700),
        rng.uniform(0.75, 1.35) * (1.0 + 0.55 * overcast), rng.uniform(0.006, 0.02),
    )  # fmt: skip
