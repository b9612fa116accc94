"""Everything that stands or drives in the city, built of a few solids each.

An object lives in its own frame: x forward, y left, z up, metres, the ground at z = 0. All builders take a
``numpy.random.Generator`` and draw sizes, proportions and colours from wide ranges, so that neither size nor colour
alone tells what an object is.
"""

import colorsys
from typing import NamedTuple

import numpy as np

from occforge.ops.scene_cast import BOX, CONE, ELLIPSOID

from .textures import atlas

# nuScenes-lidarseg: index -> official category name, https://www.nuscenes.org/nuscenes#lidarseg
CATEGORIES = (
    'noise',
    'animal',
    'human.pedestrian.adult',
    'human.pedestrian.child',
    'human.pedestrian.construction_worker',
    'human.pedestrian.personal_mobility',
    'human.pedestrian.police_officer',
    'human.pedestrian.stroller',
    'human.pedestrian.wheelchair',
    'movable_object.barrier',
    'movable_object.debris',
    'movable_object.pushable_pullable',
    'movable_object.trafficcone',
    'static_object.bicycle_rack',
    'vehicle.bicycle',
    'vehicle.bus.bendy',
    'vehicle.bus.rigid',
    'vehicle.car',
    'vehicle.construction',
    'vehicle.emergency.ambulance',
    'vehicle.emergency.police',
    'vehicle.motorcycle',
    'vehicle.trailer',
    'vehicle.truck',
    'flat.driveable_surface',
    'flat.other',
    'flat.sidewalk',
    'flat.terrain',
    'static.manmade',
    'static.other',
    'static.vegetation',
    'vehicle.ego',
)
LABEL = {name: index for index, name in enumerate(CATEGORIES)}
ANNOTATED = tuple(name for name in CATEGORIES[1:24])  # those with boxes


class Model(NamedTuple):
    """An object: P solids in its own frame, and the box around them."""

    category: str  # official nuScenes name
    kind: np.ndarray  # (P,) BOX, CONE or ELLIPSOID
    centre: np.ndarray  # (P, 3)
    rotation: np.ndarray  # (P, 3, 3) part to object
    half: np.ndarray  # (P, 3)
    top: np.ndarray  # (P, 2)
    shift: np.ndarray  # (P,)
    material: np.ndarray  # (P, 3) of the faces across x, across y, and top/bottom
    colour: np.ndarray  # (P, 2, 3) linear RGB
    size: np.ndarray  # (3,) length, width, height of the box
    offset: np.ndarray  # (3,) its centre in the object's frame
    rider: bool = False


class Builder:
    """Collects solids. Angles in degrees; ``pitch`` turns the part's x axis upwards."""

    def __init__(self):
        self.rows = []
        self.index = atlas().index

    def _add(self, kind, centre, half, material, colours, yaw=0.0, pitch=0.0, roll=0.0, top=(1.0, 1.0), shift=0.0):
        if isinstance(material, str):
            material = (material,) * 3
        self.rows.append(
            (kind, centre, rotation(yaw, pitch, roll), half, top, shift, [self.index[m] for m in material], colours)
        )

    def box(self, centre, size, material, colours, **rest):
        self._add(BOX, centre, np.asarray(size) / 2, material, colours, **rest)

    def cone(self, centre, bottom, top, height, material, colours, **rest):
        self._add(CONE, centre, (bottom, top, height / 2), material, colours, **rest)

    def ball(self, centre, size, material, colours, **rest):
        self._add(ELLIPSOID, centre, np.asarray(size) / 2, material, colours, **rest)

    def build(self, category, rider=False) -> Model:
        kind, centre, turn, half, top, shift, material, colour = (np.array(c) for c in zip(*self.rows))
        lower, upper = part_bounds(kind, centre, turn, half, top, shift)
        lower, upper = lower.min(0), upper.max(0)
        return Model(
            category,
            kind,
            centre.astype(float),
            turn,
            half,
            top,
            shift,
            material,
            colour.astype(np.float32),
            upper - lower,
            (upper + lower) / 2,
            rider,
        )


def rotation(yaw=0.0, pitch=0.0, roll=0.0):
    """Rotation matrix of yaw (about z), then pitch (x axis upwards), then roll (about x); degrees."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw, -pitch, roll])) for f in (np.cos, np.sin))
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return z @ y @ x


def part_bounds(kind, centre, turn, half, top, shift):
    """Bounds of parts in the frame that ``turn`` leads to: lower, upper (P, 3)."""
    count = len(kind)
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing='ij')).reshape(3, -1).T
    local = np.repeat(corners[None].astype(float), count, 0)
    upper = local[..., 2] > 0
    box, cone, ball = kind == BOX, kind == CONE, kind == ELLIPSOID
    size = half.copy()
    size[cone, 1] = size[cone, 0] = 1
    local *= size[:, None]
    local[box, :, 0] = np.where(upper[box], local[box, :, 0] * top[box, :1] + shift[box, None], local[box, :, 0])
    local[box, :, 1] = np.where(upper[box], local[box, :, 1] * top[box, 1:], local[box, :, 1])
    world = np.einsum('pij,pkj->pki', turn, local)
    lo, hi = world.min(1), world.max(1)
    # a disc of radius r across the axis a reaches r sqrt(1 - a_k^2) along k
    axis = turn[:, :, 2]
    across = np.sqrt(np.clip(1 - axis**2, 0, 1))
    ends = [axis * sign * half[:, 2:] for sign in (-1, 1)]
    radii = [half[:, :1], half[:, 1:2]]
    cone_lo = np.minimum(ends[0] - across * radii[0], ends[1] - across * radii[1])
    cone_hi = np.maximum(ends[0] + across * radii[0], ends[1] + across * radii[1])
    reach = np.sqrt(np.einsum('pij,pj->pi', turn**2, half**2))
    lo = np.where(cone[:, None], cone_lo, np.where(ball[:, None], -reach, lo))
    hi = np.where(cone[:, None], cone_hi, np.where(ball[:, None], reach, hi))
    return centre + lo, centre + hi


# ---- colours ---------------------------------------------------------------------------------------------------


def hsv(rng, hue=(0, 1), saturation=(0, 1), value=(0.1, 0.9)):
    """A random colour, linear RGB."""
    h, s, v = (rng.uniform(*bounds) for bounds in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v)) ** 1.8


def paint(rng):
    """Of vehicles and machines: often grey, white or black, else any hue."""
    if rng.random() < 0.45:
        return np.full(3, rng.uniform(0.02, 0.8)) * rng.uniform(0.94, 1.06, 3)
    return hsv(rng, saturation=(0.35, 0.95), value=(0.25, 0.95))


def livery(rng, hues, saturation=(0.6, 0.95), value=(0.4, 0.9), share=0.9):
    """One of the usual colours of a kind of thing (cones are orange, containers blue or rusty), or any ``paint``."""
    if rng.random() >= share:
        return paint(rng)
    return hsv(rng, hues[rng.integers(len(hues))], saturation, value)


def glass(rng):
    return np.array([0.03, 0.035, 0.04]) * rng.uniform(0.6, 2.0)


def dark(rng):
    return np.full(3, rng.uniform(0.015, 0.05))


def wall_colour(rng):
    return hsv(rng, hue=(0, 1) if rng.random() < 0.3 else (0.02, 0.14), saturation=(0.02, 0.5), value=(0.35, 0.95))


def leaf_colours(rng):
    hue = rng.uniform(0.16, 0.38) if rng.random() < 0.88 else rng.uniform(0.0, 0.14)
    base = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.7))) ** 2
    return base, base * rng.uniform(0.3, 0.6) * rng.uniform(0.85, 1.15, 3)


# ---- vehicles --------------------------------------------------------------------------------------------------


def _wheels(b, rng, xs, half_width, radius, width=0.22):
    rim = np.full(3, rng.uniform(0.1, 0.5))
    for x in xs:
        for side in (-1, 1):
            b.cone(
                (x, side * (half_width - width / 2), radius),
                radius,
                radius,
                width,
                ('tyre', 'tyre', 'wheel'),
                (dark(rng), rim),
                roll=90 * side,
            )


def car(rng):
    b, style = Builder(), rng.choice(['sedan', 'hatch', 'van'], p=[0.4, 0.35, 0.25])
    length, width = rng.uniform(3.8, 4.9), rng.uniform(1.68, 1.95)
    height = {'sedan': rng.uniform(1.4, 1.5), 'hatch': rng.uniform(1.48, 1.75), 'van': rng.uniform(1.75, 2.05)}[style]
    colour, pane, belt, low = paint(rng), glass(rng), height * rng.uniform(0.55, 0.6), rng.uniform(0.2, 0.28)
    b.box(
        (0, 0, (low + belt) / 2),
        (length, width, belt - low),
        ('car_end', 'car_side', 'plain'),
        (colour, dark(rng)),
        top=(0.97, 0.95),
    )
    span, back = {'sedan': (0.56, -0.06), 'hatch': (0.66, -0.14), 'van': (0.82, -0.07)}[style]
    taper = {'sedan': 0.62, 'hatch': 0.76, 'van': 0.86}[style]
    b.box(
        (back * length, 0, (belt + height) / 2),
        (span * length, width * 0.93, height - belt),
        ('screen', 'car_windows', 'plain'),
        (colour, pane),
        top=(taper, 0.84),
        shift=-0.1 if style != 'sedan' else 0.0,
    )
    _wheels(b, rng, (0.31 * length, -0.3 * length), width / 2, rng.uniform(0.29, 0.35))
    return b.build('vehicle.car')


def _cab(b, rng, front, length, width, height, low, colour):
    b.box(
        (front - length / 2, 0, (low + height) / 2),
        (length, width, height - low),
        ('bus_end', 'truck_side', 'plain'),
        (colour, glass(rng)),
        top=(0.92, 0.96),
        shift=-0.04,
    )
    b.box(
        (front - length * 0.45, 0, height * 0.72),
        (length * 0.5, width + 0.02, height * 0.28),
        'car_windows',
        (colour, glass(rng)),
    )


def truck(rng):
    b = Builder()
    length, width = rng.uniform(5.8, 9.0), rng.uniform(2.1, 2.5)
    cab, height = rng.uniform(1.6, 2.2), rng.uniform(2.1, 2.7)
    _cab(b, rng, length / 2, cab, width, height, 0.45, paint(rng))
    bed, rear = length - cab - 0.15, -length / 2
    b.box((rear + bed / 2 + 0.2, 0, 0.8), (bed, width * 0.5, 0.35), 'metal', (dark(rng), dark(rng)))
    style = rng.choice(['box', 'curtain', 'open', 'tipper'], p=[0.45, 0.25, 0.15, 0.15])
    colours = (livery(rng, [(0, 1)], (0.0, 0.08), (0.75, 0.97)), paint(rng))
    if style in ('box', 'curtain'):
        roof = rng.uniform(2.7, 3.5)
        side = 'truck_side' if style == 'box' else 'curtain'
        b.box((rear + bed / 2, 0, (0.95 + roof) / 2), (bed, width, roof - 0.95), ('truck_back', side, 'ribs'), colours)
    else:
        wall = rng.uniform(0.5, 0.9) if style == 'open' else rng.uniform(1.1, 1.5)
        b.box((rear + bed / 2, 0, 0.95 + wall / 2), (bed, width, wall), ('truck_back', 'ribs', 'dirt'), colours)
        b.box(
            (rear + bed / 2, 0, 0.95 + wall + 0.25),
            (bed * 0.8, width * 0.8, 0.5),
            ('dirt', 'dirt', 'gravel'),
            (hsv(rng, (0.05, 0.12), (0.1, 0.6), (0.3, 0.7)), dark(rng)),
            top=(0.5, 0.4),
        )
    _wheels(b, rng, (length / 2 - 1.1, rear + 1.2, rear + 2.25), width / 2, rng.uniform(0.42, 0.5), 0.3)
    return b.build('vehicle.truck')


def bus(rng):
    b = Builder()
    length, width, height = rng.uniform(9.5, 12.2), rng.uniform(2.45, 2.8), rng.uniform(2.9, 3.4)
    colours = (livery(rng, [(0.96, 1.03), (0.4, 0.5)]), glass(rng))
    b.box((0, 0, (0.32 + height) / 2), (length, width, height - 0.32), ('bus_end', 'bus_side', 'plain'), colours)
    if rng.random() < 0.6:
        b.box((-length * 0.2, 0, height + 0.1), (length * 0.25, width * 0.6, 0.22), 'plain', (paint(rng), dark(rng)))
    _wheels(b, rng, (0.3 * length, -0.28 * length), width / 2 + 0.02, 0.48, 0.3)
    return b.build('vehicle.bus.rigid')


def trailer(rng):
    b = Builder()
    length, width = rng.uniform(7.0, 11.0), rng.uniform(2.3, 2.6)
    style = rng.choice(['box', 'container', 'flat'], p=[0.4, 0.4, 0.2])
    deck = rng.uniform(1.0, 1.2)
    frame = dark(rng)
    b.box((0, 0, deck - 0.12), (length, width * 0.96, 0.24), 'metal', (frame, frame))
    if style == 'flat':
        for k in range(int(rng.integers(2, 4))):
            b.box(
                (length * (0.3 * k - 0.32), 0, deck + 0.5),
                (length * 0.22, width * 0.8, 1.0),
                'planks',
                (hsv(rng, (0.06, 0.12), (0.2, 0.6), (0.4, 0.8)), frame),
            )
    else:
        roof = rng.uniform(3.1, 3.9)
        side = 'curtain' if style == 'box' else 'container'
        b.box(
            (0, 0, (deck + roof) / 2),
            (length, width, roof - deck),
            ('truck_back', side, 'ribs'),
            (livery(rng, [(0.55, 0.63), (0.01, 0.05)], value=(0.3, 0.7)), paint(rng)),
        )
    back = -length / 2
    _wheels(b, rng, (back + 1.0, back + 2.1, back + 3.2), width / 2, 0.46, 0.35)
    for side in (-0.8, 0.8):  # landing legs
        b.box((length * 0.3, side, (deck - 0.2) / 2), (0.15, 0.15, deck - 0.2), 'metal', (frame, frame))
    b.box((length / 2 - 0.4, 0, deck - 0.5), (0.8, 0.5, 0.5), 'metal', (frame, frame))
    return b.build('vehicle.trailer')


def construction_vehicle(rng):
    b = Builder()
    colour = livery(rng, [(0.09, 0.15)], (0.75, 0.95), (0.65, 0.95), share=0.9)
    body, rest = (colour, dark(rng)), (dark(rng), np.full(3, 0.12))
    if rng.random() < 0.55:  # excavator
        gauge, length = rng.uniform(2.2, 2.7), rng.uniform(3.2, 4.0)
        for side in (-1, 1):
            b.box((0, side * (gauge / 2 - 0.25), 0.4), (length, 0.5, 0.8), 'tracks', rest, top=(0.86, 1))
        b.box((-0.5, 0, 1.45), (length * 0.8, gauge * 0.95, 1.1), 'machine', body)
        b.box(
            (0.3, 0.55, 2.5), (1.3, 1.0, 1.1), ('screen', 'car_windows', 'plain'), (colour, glass(rng)), top=(0.85, 0.9)
        )
        boom, pitch = rng.uniform(2.8, 3.6), rng.uniform(25, 48)
        c, s = np.cos(np.radians(pitch)), np.sin(np.radians(pitch))
        start = np.array([0.6, -0.35, 1.7])
        tip = start + boom * np.array([c, 0, s])
        b.box((start + tip) / 2, (boom + 0.3, 0.35, 0.45), 'machine', body, pitch=pitch)
        down = rng.uniform(-80, -55)
        stick = min(rng.uniform(2.0, 2.6), (tip[2] - 0.7) / abs(np.sin(np.radians(down))))
        end = tip + stick * np.array([np.cos(np.radians(down)), 0, np.sin(np.radians(down))])
        b.box((tip + end) / 2, (stick + 0.2, 0.3, 0.35), 'machine', body, pitch=down)
        b.box(end + (0.1, 0, -0.2), (0.8, 0.9, 0.7), 'metal', rest, top=(0.6, 1))
    else:  # wheel loader
        length, width = rng.uniform(4.2, 5.2), rng.uniform(2.0, 2.5)
        b.box((-length * 0.2, 0, 1.25), (length * 0.5, width * 0.8, 1.1), 'machine', body)
        b.box(
            (0.05 * length, 0, 2.3),
            (1.4, 1.3, 1.3),
            ('screen', 'car_windows', 'plain'),
            (colour, glass(rng)),
            top=(0.8, 0.85),
        )
        lift = rng.uniform(-12, 25)
        for side in (-0.5, 0.5):
            b.box((length * 0.32, side, 1.3 + 0.01 * lift), (length * 0.42, 0.22, 0.32), 'machine', body, pitch=lift)
        z = 1.2 + 0.03 * lift
        b.box((length * 0.56, 0, z), (0.9, width * 1.1, 0.9), 'metal', rest, top=(1.1, 1), shift=0.25)
        _wheels(b, rng, (length * 0.2, -length * 0.3), width / 2 + 0.1, 0.68, 0.5)
    return b.build('vehicle.construction')


def _rider(b, rng, seat, lean=12):
    skin, top, legs = hsv(rng, (0.04, 0.09), (0.3, 0.6), (0.3, 0.9)), paint(rng), paint(rng)
    b.box((0.0, 0, seat + 0.3), (0.28, 0.42, 0.62), 'cloth', (top, dark(rng)), pitch=-lean, top=(0.85, 0.9))
    b.ball((0.14, 0, seat + 0.78), (0.25, 0.22, 0.28), 'head', (skin, paint(rng)))
    for side in (-1, 1):
        b.box((0.22, side * 0.14, seat - 0.1), (0.5, 0.15, 0.16), 'plain', (legs, legs), pitch=-22)
        b.box((0.38, side * 0.14, seat - 0.42), (0.14, 0.13, 0.5), 'plain', (legs, legs))
        b.box((0.32, side * 0.22, seat + 0.32), (0.5, 0.09, 0.1), 'plain', (top, top), pitch=-12)


def motorcycle(rng, rider=False):
    b, colour = Builder(), paint(rng)
    radius, base = rng.uniform(0.28, 0.33), rng.uniform(0.66, 0.75)
    for x in (-base, base):
        b.cone((x, 0, radius), radius, radius, 0.15, ('tyre', 'tyre', 'wheel'), (dark(rng), np.full(3, 0.3)), roll=90)
    b.box((-0.02, 0, 0.5), (0.75, 0.32, 0.42), 'machine', (dark(rng) * 2, colour), top=(0.9, 0.8))
    b.ball((0.15, 0, 0.82), (0.62, 0.34, 0.32), 'plain', (colour, colour))
    b.box((-0.42, 0, 0.8), (0.75, 0.28, 0.14), 'plain', (dark(rng), colour), pitch=-4)
    b.box((base * 0.82, 0, 0.62), (0.12, 0.2, 0.75), 'metal', (np.full(3, 0.2), colour), pitch=-25)
    b.box((0.45, 0, 1.03), (0.08, 0.72, 0.07), 'metal', (dark(rng), colour))
    b.box((0.6, 0, 0.95), (0.2, 0.3, 0.3), 'plain', (colour, colour), top=(0.5, 0.8))
    if rider:
        _rider(b, rng, 0.88)
    return b.build('vehicle.motorcycle', rider)


def bicycle(rng, rider=False):
    b, colour = Builder(), paint(rng)
    radius, base = rng.uniform(0.31, 0.35), rng.uniform(0.5, 0.56)
    for x in (-base, base):
        b.cone((x, 0, radius), radius, radius, 0.06, ('tyre', 'tyre', 'wheel'), (dark(rng), np.full(3, 0.3)), roll=90)
    bars = (colour, dark(rng))
    b.box((0.02, 0, 0.72), (0.75, 0.07, 0.07), 'plain', bars, pitch=4)
    b.box((0.1, 0, 0.5), (0.75, 0.07, 0.07), 'plain', bars, pitch=38)
    b.box((-0.22, 0, 0.6), (0.07, 0.07, 0.65), 'plain', bars, pitch=-14)
    b.box((-0.3, 0, 0.94), (0.26, 0.16, 0.08), 'plain', (dark(rng), dark(rng)))
    b.box((0.44, 0, 0.7), (0.06, 0.07, 0.7), 'plain', bars, pitch=-14)
    b.box((0.4, 0, 1.04), (0.06, 0.56, 0.05), 'metal', (dark(rng), dark(rng)))
    if rng.random() < 0.4:  # a basket or a bag on the carrier
        b.box((-0.52, 0, 0.86), (0.4, 0.34, 0.3), 'planks', (paint(rng), dark(rng)))
    if rider:
        _rider(b, rng, 0.95, 20)
    return b.build('vehicle.bicycle', rider)


# ---- people, animals, movable things ----------------------------------------------------------------------------


def pedestrian(rng, category=None):
    if category is None:
        category = rng.choice(
            ['human.pedestrian.adult', 'human.pedestrian.child', 'human.pedestrian.construction_worker'],
            p=[0.75, 0.12, 0.13],
        )
    b = Builder()
    height = rng.uniform(1.1, 1.4) if category.endswith('child') else rng.uniform(1.58, 1.92)
    k, girth = height / 1.75, rng.uniform(0.9, 1.25)
    skin, top, legs = hsv(rng, (0.03, 0.09), (0.25, 0.6), (0.25, 0.95)), paint(rng), paint(rng)
    stride = rng.uniform(0, 0.22)
    for side in (-1, 1):
        b.cone(
            (side * stride * k, side * 0.1 * k, 0.42 * k),
            0.075 * k,
            0.1 * k * girth,
            0.86 * k,
            'plain',
            (legs, legs),
            pitch=0,
        )
        b.box(
            (-side * stride * k * 0.6, side * 0.27 * k * girth, 1.1 * k),
            (0.12 * k, 0.11 * k, 0.6 * k),
            'plain',
            (top, top),
            pitch=-side * stride * 90,
        )
    worker = category.endswith('worker')
    body = 'vest' if worker else 'cloth'
    if worker:
        top = hsv(rng, (0.05, 0.2), (0.8, 1), (0.8, 1))
    b.box((0, 0, 1.15 * k), (0.26 * k * girth, 0.42 * k * girth, 0.66 * k), body, (top, hsv(rng)), top=(0.9, 1.0))
    b.ball((0, 0, height - 0.14 * k), (0.23 * k, 0.2 * k, 0.28 * k), 'head', (skin, hsv(rng, value=(0.02, 0.6))))
    if rng.random() < 0.3:
        b.box((-0.22 * k, 0, 1.2 * k), (0.2 * k, 0.3 * k, 0.42 * k), 'plain', (paint(rng), dark(rng)))
    return b.build(category)


def traffic_cone(rng):
    b, height = Builder(), rng.uniform(0.6, 0.95)
    body = livery(rng, [(0.01, 0.08)], (0.8, 1), (0.75, 1), share=0.95)
    band = np.full(3, rng.uniform(0.6, 0.9))
    b.box((0, 0, 0.04), (0.42, 0.42, 0.08), 'plain', (body * rng.uniform(0.2, 1), body))
    b.cone((0, 0, 0.08 + (height - 0.08) / 2), rng.uniform(0.15, 0.2), 0.04, height - 0.08, 'cone', (body, band))
    return b.build('movable_object.trafficcone')


def barrier(rng, style=None):
    """x across, y along: as in nuScenes its width is the long side."""
    b = Builder()
    style = style or rng.choice(['jersey', 'plank', 'water'])
    width, height = rng.uniform(1.8, 2.4), rng.uniform(0.85, 1.1)
    body = (
        livery(rng, [(0.99, 1.06)], (0.75, 1), (0.6, 0.95)) if rng.random() < 0.6 else np.full(3, rng.uniform(0.4, 0.8))
    )
    red = livery(rng, [(0.97, 1.06)], (0.75, 1), (0.6, 0.95))
    band = np.full(3, rng.uniform(0.6, 0.9)) if body[2] < 0.4 else red
    if style == 'plank':
        for side in (-1, 1):
            b.box((0, side * (width / 2 - 0.1), height / 2), (0.4, 0.08, height), 'metal', (body, body), top=(0.15, 1))
        for z in (height * 0.5, height - 0.14):
            b.box((0, 0, z), (0.1, width, 0.26), 'barrier', (body, band))
    else:
        texture = 'barrier' if style == 'water' else 'barrier_band'
        b.box((0, 0, 0.2), (0.55, width, 0.4), texture, (body, band), top=(0.6, 1))
        b.box((0, 0, (height + 0.4) / 2), (0.33, width, height - 0.4), texture, (body, band), top=(0.6, 1))
    return b.build('movable_object.barrier')


def dumpster(rng):
    b, colour = Builder(), livery(rng, [(0.3, 0.42)], (0.5, 0.9), (0.2, 0.5))
    length, width, height = rng.uniform(1.4, 2.6), rng.uniform(1.0, 1.5), rng.uniform(1.0, 1.5)
    b.box((0, 0, height / 2), (length, width, height), ('ribs', 'ribs', 'plain'), (colour, dark(rng)), top=(1.12, 1.12))
    b.box((0, 0, height + 0.06), (length * 1.14, width * 1.14, 0.12), 'plain', (paint(rng), dark(rng)), top=(0.9, 0.7))
    return b.build('movable_object.pushable_pullable')


def push_cart(rng):
    b, colour = Builder(), paint(rng)
    b.box((0, 0, 0.7), (1.3, 0.8, 0.6), ('checker', 'poster', 'plain'), (colour, hsv(rng)))
    for side in (-1, 1):
        b.cone((0, side * 0.45, 0.3), 0.3, 0.3, 0.08, ('tyre', 'tyre', 'wheel'), (dark(rng), colour), roll=90)
    if rng.random() < 0.6:  # a parasol
        b.cone((0.2, 0, 1.5), 0.03, 0.03, 1.1, 'metal', (colour, colour))
        b.cone((0.2, 0, 2.1), 1.0, 0.05, 0.4, 'bands', (hsv(rng), hsv(rng)))
    return b.build('movable_object.pushable_pullable')


def debris(rng):
    b = Builder()
    for _ in range(int(rng.integers(3, 6))):
        size = rng.uniform(0.35, 1.0, 3) * (1, 1, 0.7)
        place = (rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.6), size[2] / 2)
        b.box(
            place,
            size,
            str(rng.choice(['planks', 'poster', 'gravel', 'plain'])),
            (paint(rng), hsv(rng)),
            yaw=rng.uniform(0, 90),
        )
    b.ball((rng.uniform(-0.5, 0.5), 0, 0.2), (0.9, 0.7, 0.7), 'plain', (dark(rng), dark(rng)))
    return b.build('movable_object.debris')


def animal(rng):
    b, fur = Builder(), hsv(rng, (0.04, 0.12), (0, 0.6), (0.1, 0.9))
    k, fur2 = rng.uniform(0.8, 1.6), hsv(rng, (0.04, 0.12), (0, 0.6), (0.1, 0.9))
    b.ball((0, 0, 0.52 * k), (0.85 * k, 0.32 * k, 0.36 * k), 'dirt', (fur, fur2))
    b.ball((0.48 * k, 0, 0.72 * k), (0.32 * k, 0.2 * k, 0.24 * k), 'plain', (fur, fur2))
    for x in (-0.28, 0.28):
        for y in (-0.09, 0.09):
            b.box((x * k, y * k, 0.22 * k), (0.1 * k, 0.09 * k, 0.44 * k), 'plain', (fur, fur2))
    return b.build('animal')


def scooter_rider(rng):
    b = Builder()
    for x in (-0.45, 0.45):
        b.cone((x, 0, 0.13), 0.13, 0.13, 0.08, ('tyre', 'tyre', 'wheel'), (dark(rng), dark(rng)), roll=90)
    b.box((0, 0, 0.2), (0.9, 0.18, 0.08), 'plain', (paint(rng), dark(rng)))
    b.box((0.46, 0, 0.65), (0.06, 0.06, 0.95), 'metal', (dark(rng), dark(rng)), pitch=6)
    b.box((0.4, 0, 1.12), (0.05, 0.5, 0.05), 'metal', (dark(rng), dark(rng)))
    top, legs = paint(rng), paint(rng)
    b.box((-0.1, 0, 0.66), (0.22, 0.26, 0.85), 'plain', (legs, legs))
    b.box((-0.08, 0, 1.38), (0.26, 0.44, 0.62), 'cloth', (top, hsv(rng)))
    b.ball((-0.05, 0, 1.82), (0.24, 0.21, 0.28), 'head', (hsv(rng, (0.03, 0.09), (0.3, 0.6), (0.3, 0.9)), paint(rng)))
    return b.build('human.pedestrian.personal_mobility')


def bench(rng):
    b, wood = Builder(), hsv(rng, (0.05, 0.12), (0.2, 0.7), (0.3, 0.8))
    b.box((0, 0, 0.45), (0.5, 1.8, 0.1), 'planks', (wood, dark(rng)))
    b.box((-0.24, 0, 0.75), (0.1, 1.8, 0.5), 'planks', (wood, dark(rng)), pitch=8)
    for side in (-0.75, 0.75):
        b.box((0, side, 0.22), (0.45, 0.1, 0.42), 'metal', (dark(rng), dark(rng)))
    return b.build('static.other')


def mailbox(rng):
    b, colour = Builder(), paint(rng)
    b.box((0, 0, 0.62), (0.6, 0.6, 1.24), ('sign', 'poster', 'plain'), (colour, hsv(rng)))
    b.cone((0, 0, 1.24), 0.3, 0.3, 0.6, 'plain', (colour, colour), roll=90)
    return b.build('static.other')


# ---- buildings and street furniture -----------------------------------------------------------------------------


def building(rng, length, width):
    """A house of ``length`` (x) by ``width`` (y), its front towards -y."""
    b = Builder()
    floors = int(rng.integers(1, 6))
    height = floors * rng.uniform(2.9, 3.3) + rng.uniform(0, 0.6)
    colours, pane = wall_colour(rng), glass(rng) * rng.uniform(1, 3)
    texture = str(
        rng.choice(['facade_0', 'facade_1', 'facade_2', 'facade_3', 'facade_glass'], p=[0.26, 0.22, 0.22, 0.2, 0.1])
    )
    base = 0.0
    if floors > 1 and rng.random() < 0.45:  # shops on the ground floor
        base = 3.2
        b.box((0, 0, base / 2 - 0.2), (length, width, base + 0.4), ('shop', 'shop', 'plain'), (wall_colour(rng), pane))
    b.box(
        (0, 0, (height + base) / 2 - (0.2 if base == 0 else 0)),
        (length * 0.998, width * 0.998, height - base + (0.4 if base == 0 else 0)),
        (texture, texture, 'concrete'),
        (colours, pane),
    )
    if rng.random() < 0.5:
        b.box(
            (0, 0, height + 0.9),
            (length * 1.03, width * 1.03, 1.8),
            ('plaster', 'roof', 'roof'),
            (wall_colour(rng) * 0.6, dark(rng)),
            top=(1.0, 0.05),
        )
    else:
        b.box(
            (rng.uniform(-0.2, 0.2) * length, 0, height + 0.6),
            (length * 0.3, width * 0.4, 1.2),
            'ribs',
            (wall_colour(rng), dark(rng)),
        )
    for _k in range(int(rng.integers(1, 3))):
        x = rng.uniform(-0.38, 0.38) * length
        b.box((x, -width / 2, 1.1), (1.3, 0.16, 2.3), ('plain', 'door', 'plain'), (wall_colour(rng), paint(rng)))
        if rng.random() < 0.6:  # porch: steps, roof, posts
            depth = rng.uniform(0.9, 1.5)
            b.box((x, -width / 2 - depth / 2, 0.12), (2.2, depth, 0.3), 'concrete', (wall_colour(rng), dark(rng)))
            b.box((x, -width / 2 - depth / 2, 2.7), (2.4, depth, 0.18), 'plain', (wall_colour(rng), dark(rng)))
            for side in (-1, 1):
                b.cone(
                    (x + side * 1.05, -width / 2 - depth + 0.12, 1.4),
                    0.09,
                    0.09,
                    2.5,
                    'plain',
                    (wall_colour(rng), pane),
                )
    if floors > 1 and rng.random() < 0.5:  # balconies
        for floor in range(1, floors):
            x = rng.uniform(-0.3, 0.3) * length
            b.box(
                (x, -width / 2 - 0.5, floor * 3.1 + 0.5),
                (2.6, 1.0, 1.0),
                ('bars', 'bars', 'concrete'),
                (wall_colour(rng), dark(rng)),
            )
    return b.build('static.manmade')


def lamp_post(rng):
    b, colour, height = Builder(), np.full(3, rng.uniform(0.05, 0.4)), rng.uniform(5.5, 8)
    b.cone((0, 0, height / 2), 0.12, 0.07, height, 'metal', (colour, colour))
    b.box((0.7, 0, height), (1.5, 0.1, 0.1), 'metal', (colour, colour), pitch=8)
    b.box((1.4, 0, height + 0.08), (0.6, 0.25, 0.14), 'plain', (colour, colour))
    if rng.random() < 0.4:
        b.box((0, 0, 3.2), (0.04, 0.7, 0.9), ('poster', 'plain', 'plain'), (hsv(rng), hsv(rng)))
    return b.build('static.manmade')


def traffic_light(rng):
    b, colour = Builder(), np.full(3, rng.uniform(0.03, 0.2))
    b.cone((0, 0, 2.6), 0.1, 0.08, 5.2, 'metal', (colour, colour))
    if rng.random() < 0.5:
        b.box((0, 1.9, 5.1), (0.12, 3.8, 0.12), 'metal', (colour, colour))
        spots = [(0, 3.4, 4.8), (0, 0.2, 3.1)]
    else:
        spots = [(0, 0.0, 3.0)]
    for spot in spots:
        x, y, z = spot
        b.box((x - 0.05, y, z), (0.3, 0.36, 1.0), 'plain', (np.full(3, 0.02), colour))
        lit = rng.integers(0, 3)
        for k in range(3):
            lamp = np.array([(0.7, 0.03, 0.02), (0.8, 0.5, 0.02), (0.03, 0.6, 0.2)][k]) * (1.0 if k == lit else 0.12)
            b.cone((x - 0.22, y, z + 0.3 - 0.3 * k), 0.11, 0.11, 0.06, 'plain', (lamp, lamp), pitch=90)
    return b.build('static.manmade')


def road_sign(rng):
    b, post = Builder(), np.full(3, rng.uniform(0.2, 0.5))
    height = rng.uniform(2.2, 3.0)
    b.cone((0, 0, height / 2), 0.05, 0.05, height, 'metal', (post, post))
    face = (hsv(rng, saturation=(0.5, 1), value=(0.4, 0.95)), np.full(3, 0.8))
    if rng.random() < 0.5:
        b.cone((-0.06, 0, height - 0.1), 0.4, 0.4, 0.05, 'sign', face, pitch=-90)
    else:
        b.box(
            (-0.06, 0, height - 0.1),
            (0.05, rng.uniform(0.7, 1.4), rng.uniform(0.6, 1.0)),
            ('sign', 'plain', 'plain'),
            face,
        )
    return b.build('static.manmade')


def bollard(rng):
    """About as tall as a traffic cone, and made to stay."""
    b, colour, height = Builder(), paint(rng), rng.uniform(0.7, 1.0)
    slim = rng.uniform(0.09, 0.16)
    b.cone((0, 0, height / 2), slim, slim * rng.uniform(0.6, 1), height, 'metal', (colour, colour))
    b.ball((0, 0, height), (slim * 1.8, slim * 1.8, slim * 1.6), 'plain', (hsv(rng), colour))
    return b.build('static.manmade')


def cabinet(rng):
    b, colour = Builder(), wall_colour(rng)
    size = (rng.uniform(0.5, 0.8), rng.uniform(1.0, 2.0), rng.uniform(1.0, 1.6))
    b.box((0, 0, size[2] / 2), size, ('door', 'metal', 'plain'), (colour, colour * 0.6))
    return b.build('static.manmade')


def column(rng):
    """An advertising column or statue, as tall as a person or taller."""
    b = Builder()
    radius, height = rng.uniform(0.25, 0.6), rng.uniform(1.5, 3.0)
    b.cone((0, 0, height / 2), radius, radius, height, 'poster', (hsv(rng), hsv(rng)))
    b.cone((0, 0, height + 0.15), radius * 1.15, 0.05, 0.3, 'plain', (dark(rng), dark(rng)))
    return b.build('static.manmade')


def shelter(rng):
    """A bus stop; open towards -x."""
    b, colour = Builder(), np.full(3, rng.uniform(0.05, 0.3))
    length = rng.uniform(3.2, 4.6)
    b.box((0.6, 0, 1.25), (0.08, length, 2.1), ('poster', 'plain', 'plain'), (hsv(rng), glass(rng)))
    b.box((0, 0, 2.5), (1.5, length + 0.3, 0.14), 'plain', (colour, colour))
    for side in (-1, 1):
        b.box((0.1, side * length / 2, 1.2), (0.9, 0.06, 2.3), ('plain', 'poster', 'plain'), (colour, glass(rng)))
    return b.build('static.manmade')


def wall_piece(rng, length, style, colours):
    """``length`` metres of fence or wall along x."""
    b = Builder()
    if style == 'fence':
        b.box((0, 0, 0.85), (length, 0.08, 1.5), ('plain', 'planks', 'plain'), colours)
        b.box((-length / 2, 0, 0.85), (0.14, 0.14, 1.75), 'plain', colours)
    elif style == 'bars':
        b.box((0, 0, 0.9), (length, 0.06, 1.4), ('plain', 'bars', 'plain'), colours)
        b.box((0, 0, 0.15), (length, 0.3, 0.5), 'concrete', colours)
    else:
        height = 1.0 if style == 'low' else 1.9
        b.box(
            (0, 0, height / 2 - 0.1),
            (length, 0.35, height + 0.2),
            ('plain', 'brick_wall' if style != 'low' else 'panels', 'plain'),
            colours,
        )
    return b.build('static.manmade')


# ---- vegetation -------------------------------------------------------------------------------------------------


def tree(rng):
    b, (bright, deep) = Builder(), leaf_colours(rng)
    bark = hsv(rng, (0.05, 0.1), (0.2, 0.6), (0.15, 0.5))
    trunk, radius = rng.uniform(1.9, 3.0), rng.uniform(0.13, 0.24)
    if rng.random() < 0.2:  # conifer
        height, spread = rng.uniform(5, 9), rng.uniform(1.3, 1.9)
        b.cone((0, 0, 0.7), radius, radius * 0.8, 1.5, 'bark', (bark, bark * 0.4))
        for k in range(3):
            low = 1.0 + k * height * 0.24
            b.cone(
                (0, 0, low + height * 0.2),
                spread * (1 - 0.24 * k),
                0.05 + 0.2 * (2 - k),
                height * 0.4,
                'needles',
                (bright, deep),
            )
        return b.build('static.vegetation')
    b.cone((0, 0, trunk / 2 + 0.4), radius, radius * 0.7, trunk + 1.0, 'bark', (bark, bark * 0.4))
    spread = rng.uniform(1.7, 2.8)
    b.ball((0, 0, trunk + spread * 0.55), (spread * 1.5, spread * 1.5, spread * 1.3), 'leaves', (bright, deep))
    for _ in range(int(rng.integers(3, 6))):
        angle, reach = rng.uniform(0, 2 * np.pi), spread * rng.uniform(0.35, 0.6)
        size = spread * rng.uniform(0.7, 1.1, 3) * (1, 1, 0.8)
        tone = rng.uniform(0.8, 1.2)
        b.ball(
            (reach * np.cos(angle), reach * np.sin(angle), trunk + spread * rng.uniform(0.3, 0.95)),
            size,
            'leaves',
            (bright * tone, deep * tone),
            yaw=rng.uniform(0, 90),
        )
    return b.build('static.vegetation')


def bush(rng):
    b, (bright, deep) = Builder(), leaf_colours(rng)
    for _ in range(int(rng.integers(2, 5))):
        size = rng.uniform(0.7, 1.5, 3) * (1, 1, 1.1)
        b.ball((rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.4), size[2] * 0.36), size, 'leaves', (bright, deep))
    return b.build('static.vegetation')


def shrub(rng):
    """A clipped shrub, as tall as a person or a bollard."""
    b, colours = Builder(), leaf_colours(rng)
    height = rng.uniform(0.7, 1.7)
    b.cone((0, 0, height / 2), rng.uniform(0.25, 0.45), 0.12, height, 'hedge', colours)
    return b.build('static.vegetation')


def hedge_piece(rng, length, colours, height):
    b = Builder()
    b.box((0, 0, height / 2 - 0.1), (length, 0.6, height + 0.2), 'hedge', colours, top=(1, 0.85))
    return b.build('static.vegetation')
