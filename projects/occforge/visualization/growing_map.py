"""A map that grows frame by frame: a page with a slider over time, or pictures."""

from pathlib import Path

import numpy as np

from .canvas import BACKGROUND
from .clouds import NO_INSTANCE, camera_around, draw_point_cloud, instance_palette
from .occupancy import Camera
from .viewer import Layer, write_occupancy_page

_WAY = (32, 36, 42)


class GrowingMap:
    """Points of one frame after the other in the colours of their instances. ::

        map = GrowingMap()
        for rgb, depth, pose in camera:
            frame = stream.step(rgb=rgb, depth=depth, pose=pose)  # occforge.systems.esam.OnlineSegmentor
            map.add(frame.points, frame.instance_ids, pose)
        map.write_html('map.html')

    An instance keeps its colour, because the colour follows from its number alone.

    Args:
        cell: metres; of the points in a cell of this size the first stays, so that the map grows with what is new.
    """

    def __init__(self, cell: float = 0.03):
        if cell <= 0:
            raise ValueError(f'GrowingMap: cell has to be above 0, found {cell}')
        self.cell = cell
        self._taken = np.zeros(0, np.int64)  # keys of the cells, sorted
        self._points: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._way: list[np.ndarray] = []

    def __len__(self) -> int:
        """Frames so far."""
        return len(self._points)

    def add(self, points, numbers, pose=None) -> None:
        """The next frame.

        Args:
            points: (P, 3 or more) x, y, z in metres in the scene, then colours 0..255, if any.
            numbers: (P,) int of the instances, which never change; negative: none.
            pose: (4, 4) camera to scene, for the camera's way; None: no way is drawn.
        """
        points, numbers = np.asarray(points, np.float32), np.asarray(numbers).astype(np.int64)
        if points.ndim != 2 or points.shape[1] < 3 or numbers.shape != points.shape[:1]:
            raise ValueError(f'GrowingMap.add: points {points.shape} and numbers {numbers.shape} do not fit')
        keys, first = np.unique(self._keys(points), return_index=True)
        fresh = ~np.isin(keys, self._taken, assume_unique=True)
        self._taken = np.union1d(self._taken, keys[fresh])
        rows = np.sort(first[fresh])
        self._points.append(points[rows])
        self._numbers.append(numbers[rows])
        if pose is not None:
            self._way.append(np.asarray(pose, np.float32)[:3, 3])

    def _keys(self, points: np.ndarray) -> np.ndarray:
        """(P,) int64, 21 bits an axis: cells up to a million from the origin."""
        cells = np.floor(points[:, :3].astype(np.float64) / self.cell).astype(np.int64) + (1 << 20)
        if len(cells) and (cells.min() < 0 or cells.max() >= 1 << 21):
            raise ValueError('GrowingMap.add: points lie too far from the origin')
        return (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]

    @property
    def points(self) -> np.ndarray:
        """(P, 3 or more) of all frames, in their order."""
        return np.concatenate(self._points) if self._points else np.zeros((0, 3), np.float32)

    @property
    def numbers(self) -> np.ndarray:
        """(P,) int64 instance of each point."""
        return np.concatenate(self._numbers) if self._numbers else np.zeros(0, np.int64)

    @property
    def colours(self) -> np.ndarray:
        """(P, 3) uint8 of the instances."""
        numbers = self.numbers
        palette = instance_palette(int(numbers.max(initial=-1)) + 1)
        return np.concatenate([palette, np.uint8([NO_INSTANCE])])[np.where(numbers < 0, len(palette), numbers)]

    @property
    def steps(self) -> np.ndarray:
        """(frames,) points that there are after each frame."""
        return np.cumsum([len(points) for points in self._points])

    def layers(self) -> list[Layer]:
        """Instances, the images' colours where the points have them, and the camera's way."""
        points, steps = self.points, self.steps
        layers = [Layer('instances', points[:, :3], self.colours, width=3.0, steps=steps)]
        if points.shape[1] >= 6:
            layers.append(Layer('colours', points[:, :3], points[:, 3:6], width=3.0, visible=False, steps=steps))
        if len(self._way) == len(self._points) > 1:
            ends = np.stack([self._way[:-1], self._way[1:]], 1).reshape(-1, 3)
            layers.append(Layer("camera's way", ends, _WAY, kind='lines', steps=2 * np.arange(len(self._way))))
        return layers

    def write_html(self, path, title: str = 'Map') -> None:
        """A page that turns and plays (``occupancy_page``).

        Raises:
            ValueError: there is no point yet.
        """
        points = self.points[:, :3]
        if not len(points):
            raise ValueError('GrowingMap: no point has come yet')
        low, high = np.percentile(points, [0.5, 99.5], axis=0)
        area = (*low.tolist(), *np.maximum(high, low + self.cell).tolist())
        write_occupancy_page(Path(path), {}, layers=self.layers(), title=title, point_cloud_range=area)

    def pictures(self, size=(960, 640), camera: Camera | None = None):
        """One picture (height, width, 3) uint8 after each frame, all from one camera (default ``camera_around``)."""
        points, colours = self.points[:, :3], self.colours
        camera = camera or camera_around(points, size)
        radius = max(float(np.linalg.norm(np.ptp(points, axis=0))) / 250, 0.005) if len(points) else None
        for count in self.steps:
            yield draw_point_cloud(
                points[:count], colours[:count], camera=camera, radius=radius, background=BACKGROUND
            )  # fmt: skip
