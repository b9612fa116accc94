"""What stands in a room."""

from dataclasses import dataclass

import numpy as np
import torch

from ...ops.scene_cast import BOX, Scene, primitive_rows


@dataclass
class Part:
    """A box.

    Attributes:
        centre, half: (3,) metres. yaw: radians.
        instance: 1-based object; category: ScanNet's name of it.
        colours: two (3,) colours 0..255 of its pattern. pattern: 'plain', 'stripes', 'bands', 'checks' or 'dots'.
        period: metres of the pattern.
    """

    centre: np.ndarray
    half: np.ndarray
    yaw: float
    instance: int
    category: str
    colours: tuple
    pattern: str
    period: float


@dataclass
class Room:
    """Parts, the extent (3,) of the inside in metres, and the category of each instance (1-based)."""

    parts: list[Part]
    size: np.ndarray
    categories: list[str]

    def scene(self) -> Scene:
        """For casting rays."""
        rows = []
        for part in self.parts:
            c, s = np.cos(part.yaw), np.sin(part.yaw)
            rotation = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
            rows.append(primitive_rows(BOX, torch.as_tensor(part.centre), rotation, torch.as_tensor(part.half)))
        return Scene(torch.cat(rows))


PATTERNS = ('plain', 'stripes', 'checks', 'dots')
HALVES = ('stripes', 'bands', 'checks')  # as much of the one colour as of the other


def _look(rng) -> dict:
    base = rng.uniform(40, 230, 3)
    return dict(
        colours=(base, np.clip(base + rng.choice([-1, 1], 3) * rng.uniform(30, 80, 3), 0, 255)),
        pattern=str(rng.choice(PATTERNS)),
        period=float(rng.uniform(0.06, 0.2)),
    )


def make_room(rng: np.random.Generator) -> Room:
    """A room with furniture, pictures on its walls, and two rows of modules that stand flush: modules of one pattern
    are one cabinet. Its neighbour has another pattern of the same two colours, as much of each and too fine for a few
    thousand points a frame, so that the border between two cabinets is one of texture alone."""
    size = np.array([rng.uniform(3.6, 5.5), rng.uniform(3.6, 5.5), rng.uniform(2.4, 2.9)])
    parts, categories = [], []

    def add(category, boxes, look=None, yaw=0.0):
        categories.append(category)
        look = look or _look(rng)
        for centre, half in boxes:
            centre, half = np.asarray(centre, dtype=np.float64), np.asarray(half, dtype=np.float64)
            parts.append(Part(centre, half, yaw, len(categories), category, **look))

    x, y, z = size
    add('floor', [((0, 0, -0.05), (x / 2 + 0.1, y / 2 + 0.1, 0.05))])
    wall = _look(rng)
    sides = (((x / 2 + 0.05, 0), (0.05, y / 2)), ((-x / 2 - 0.05, 0), (0.05, y / 2)),
             ((0, y / 2 + 0.05), (x / 2, 0.05)), ((0, -y / 2 - 0.05), (x / 2, 0.05)))  # fmt: skip
    for (cx, cy), (hx, hy) in sides:
        add('wall', [((cx, cy, z / 2), (hx, hy, z / 2))], dict(wall, pattern='plain'))
    # cabinets along two walls: modules of one size, one to three to a cabinet
    width, depth, height = rng.uniform(0.35, 0.5), rng.uniform(0.3, 0.45), rng.uniform(0.7, 1.6)
    for side in (-1, 1):
        left, look = -x / 2 + 0.1, dict(_look(rng), pattern=None, period=float(rng.uniform(0.025, 0.04)))
        while left + width < x / 2 - 0.1:
            count = min(int(rng.integers(1, 4)), int((x / 2 - 0.1 - left) / width))
            if count < 1:
                break
            centres = [left + width * (i + 0.5) for i in range(count)]
            at = side * (y / 2 - depth / 2)
            boxes = [((c, at, height / 2), (width / 2, depth / 2, height / 2)) for c in centres]
            look = dict(look, pattern=str(rng.choice([name for name in HALVES if name != look['pattern']])))
            add('cabinet', boxes, look)
            left += width * count
    for _ in range(int(rng.integers(2, 4))):
        side = rng.choice([-1, 1])
        h = rng.uniform(0.2, 0.5, 2)
        at = side * (x / 2 - 0.015), rng.uniform(1.0 - y / 2, y / 2 - 1.0), rng.uniform(1.2, z - 0.6)
        add('picture', [(at, (0.015, h[0], h[1] * 0.7))])
    free = []
    for category in rng.permutation(['table', 'chair', 'chair', 'sofa', 'bed', 'box', 'box', 'desk']):
        for _ in range(20):
            radius = dict(chair=0.35, box=0.3, table=0.7, desk=0.7, sofa=0.9, bed=1.1)[str(category)]
            cx, cy = (rng.uniform(-side / 2 + radius, side / 2 - radius) for side in (x, y - 2 * depth))
            if all(np.hypot(cx - ox, cy - oy) > radius + other for ox, oy, other in free):
                free.append((cx, cy, radius))
                add(str(category), _furniture(str(category), cx, cy, rng), yaw=0.0)
                break
    return Room(parts, size, categories)


def _furniture(category: str, x: float, y: float, rng) -> list:
    """Boxes (centre, half) of a piece at (x, y)."""
    scale = rng.uniform(0.85, 1.1)
    if category in ('table', 'desk'):
        a, b, h = 0.55 * scale, 0.35 * scale, 0.72
        legs = [
            ((x + i * (a - 0.05), y + j * (b - 0.05), h / 2), (0.04, 0.04, h / 2)) for i in (-1, 1) for j in (-1, 1)
        ]
        return [((x, y, h), (a, b, 0.03)), *legs]
    if category == 'chair':
        back = rng.choice([-1, 1]) * 0.2
        return [((x, y, 0.22), (0.2, 0.2, 0.22)), ((x, y + back, 0.65), (0.2, 0.03, 0.25))]
    if category == 'sofa':
        return [((x, y, 0.2), (0.75 * scale, 0.35, 0.2)), ((x, y - 0.3, 0.55), (0.75 * scale, 0.08, 0.2))]
    if category == 'bed':
        return [((x, y, 0.22), (0.9 * scale, 0.5 * scale, 0.22))]
    side = 0.2 * scale
    return [((x, y, side), (side, side, side))]
