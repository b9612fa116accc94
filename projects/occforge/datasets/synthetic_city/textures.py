"""Tileable textures of the city, packed with their mip levels into one table that a single gather reads.

A texture has two channels: ``mask`` blends the two colours of the object that wears it (joints of paving, window panes,
stripes), ``shade`` multiplies the result (1.0 at 128). Features are 0.2 to 3 m large so that they survive a network
input of a few hundred pixels. Colours belong to the objects, not to the textures: what a surface is shows in its
pattern, hardly in its hue.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

SIZE = 256  # texels along a side at level 0
LEVELS = 7  # 256 .. 4 texels


class Material(NamedTuple):
    """How a texture lies on a surface."""

    tile: tuple[float, float]  # metres per repetition along u and v; 0 = stretched once over the face
    gloss: float = 0.0  # share of the sky's reflection in the second colour (panes of glass)
    intensity: float = 0.3  # LiDAR reflectivity of the surface, 0..1; in the near infrared plants are bright


def _noise(rng, cells, octaves=4, gain=0.55, stretch=(1, 1)):
    """Tileable value noise, zero mean and unit deviation."""
    total = np.zeros((SIZE, SIZE), np.float32)
    weight = 1.0
    for octave in range(octaves):
        n = cells * 2**octave
        if n * max(stretch) > SIZE:
            break
        grid = rng.standard_normal((n * stretch[1], n * stretch[0])).astype(np.float32)
        wrapped = np.pad(grid, 2, mode='wrap')
        fx, fy = -(-SIZE // grid.shape[1]), -(-SIZE // grid.shape[0])
        big = cv2.resize(wrapped, (wrapped.shape[1] * fx, wrapped.shape[0] * fy), interpolation=cv2.INTER_CUBIC)
        big = big[2 * fy : -2 * fy, 2 * fx : -2 * fx]
        total += weight * cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        weight *= gain
    return (total - total.mean()) / total.std()


def _axes():
    u = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.meshgrid(u, 1 - u)  # v upwards: row 0 is the top


def _cells(rng, count):
    """Tileable Voronoi pattern: (distance to the nearest seed, gap to the second, id of the nearest)."""
    seeds = rng.random((count, 2)).astype(np.float32)
    u, v = _axes()
    d1 = np.full((SIZE, SIZE), 9.0, np.float32)
    d2 = d1.copy()
    nearest = np.zeros((SIZE, SIZE), np.int64)
    for index, (x, y) in enumerate(seeds):
        du, dv = np.abs(u - x), np.abs(v - y)
        d = np.minimum(du, 1 - du) ** 2 + np.minimum(dv, 1 - dv) ** 2
        closer = d < d1
        d2 = np.where(closer, d1, np.minimum(d2, d))
        nearest[closer] = index
        d1 = np.where(closer, d, d1)
    return np.sqrt(d1), np.sqrt(d2) - np.sqrt(d1), nearest


def _bond(nu, nv, gap_u, gap_v, running=True):
    """Joints (0/1) and stone number of a bond of nu x nv stones over the tile."""
    u, v = _axes()
    row = np.floor(v * nv)
    shifted = u * nu + (0.5 * (row % 2) if running else 0)
    column = np.floor(shifted) % nu
    fu, fv = shifted % 1, v * nv % 1
    joint = (fu < gap_u) | (fu > 1 - gap_u) | (fv < gap_v) | (fv > 1 - gap_v)
    return joint.astype(np.float32), (row * nu + column).astype(np.int64)


def _windows(rng, nu, nv, width, height, sill=0.2, frame=0.12, lit=0.0):
    """Panes (1) with a frame, each a little different."""
    u, v = _axes()
    fu, fv = (u * nu) % 1, (v * nv) % 1
    number = (np.floor(v * nv) * nu + np.floor(u * nu)).astype(np.int64)
    x, y = np.abs(fu - 0.5) / (width / 2), np.abs(fv - (sill + height / 2)) / (height / 2)
    pane = ((x < 1) & (y < 1)).astype(np.float32)
    border = (((x < 1 + frame) & (y < 1 + frame)) & (pane == 0)).astype(np.float32)
    cross = ((x < 0.05) & (pane == 1)).astype(np.float32)
    tone = rng.uniform(0.55, 1.35, nu * nv).astype(np.float32)[number]
    mask = pane * (1 - cross)
    shade = np.where(mask > 0, tone * (0.85 + 0.3 * fv), 1 + 0.28 * border - 0.25 * cross)
    return mask, shade.astype(np.float32)


def _build(rng):
    u, v = _axes()
    one = np.ones_like(u)
    noise = functools.partial(_noise, rng)
    out = {}

    def add(name, mask, shade, tile, gloss=0.0, intensity=0.3):
        out[name] = (np.broadcast_to(mask, u.shape), np.broadcast_to(shade, u.shape), Material(tile, gloss, intensity))

    # ---- ground ------------------------------------------------------------------------------------------------
    patches = noise(2, 2)
    cracks = np.exp(-((noise(4, 4) / 0.05) ** 2)) * (noise(3, 2) > 0.4)
    add('asphalt', (patches > 0.9) * 0.55, 1 + 0.07 * noise(64, 2) + 0.06 * patches - 0.4 * cracks, (8, 8), 0, 0.16)
    seams = ((np.abs(u - 0.3) < 0.006) | (np.abs(v - 0.6) < 0.006)).astype(np.float32)
    square = ((u > 0.3) & (u < 0.62) & (v > 0.1) & (v < 0.6)).astype(np.float32)
    add('asphalt_mended', square * 0.8, 1 + 0.09 * noise(64, 2) - 0.35 * seams + 0.05 * noise(4), (9, 9), 0, 0.18)
    joint, stone = _bond(4, 4, 0.035, 0.035, running=False)
    tone = rng.normal(1, 0.09, 16)[stone]
    add('slabs', joint, tone + 0.05 * noise(32, 2) - 0.25 * joint, (4, 4), 0, 0.3)
    joint, stone = _bond(4, 8, 0.04, 0.07)
    tone = rng.normal(1, 0.13, 32)[stone]
    add('bricks', joint, tone + 0.05 * noise(32, 2), (2.4, 2.4), 0, 0.22)
    joint, _ = _bond(2, 2, 0.012, 0.012, running=False)
    add('concrete', joint * 0.8, 1 + 0.08 * noise(4, 5) - 0.35 * joint, (5, 5), 0, 0.26)
    tufts = noise(12, 4, 0.8)
    add('grass', np.clip(0.4 + 0.35 * noise(6, 4, 0.7), 0, 1), 1 + 0.24 * tufts, (4, 4), 0, 0.55)
    dry = noise(3, 5, 0.65)
    add('meadow', np.clip(0.45 + 0.5 * dry, 0, 1), 1 + 0.2 * noise(24, 3, 0.9, (1, 2)), (6, 6), 0, 0.5)
    clods = noise(8, 4, 0.7)
    add('dirt', np.clip(0.3 + 0.3 * noise(3, 3), 0, 1), 1 + 0.17 * clods, (5, 5), 0, 0.3)
    distance, gap, cell = _cells(rng, 300)
    tone = rng.normal(1, 0.28, 300)[cell]
    add('gravel', (gap < 0.008) * 0.9, tone - 0.3 * (gap < 0.008), (3, 3), 0, 0.22)
    stripe = ((u + v) * 4 % 1 < 0.45).astype(np.float32)
    add('hatch', stripe * (noise(24, 3) > -1.6), 1 + 0.07 * noise(48, 2), (4, 4), 0, 0.26)
    distance, gap, cell = _cells(rng, 90)
    tone = rng.normal(1, 0.16, 90)[cell]
    add('cobble', (gap < 0.028) * 1.0, tone + 0.2 - 3.2 * distance, (3, 3), 0, 0.22)
    worn = noise(16, 4)
    add('paint', (worn > 1.7) * 0.8, 1 + 0.06 * noise(48, 2) + 0.05 * noise(4), (4, 4), 0, 0.4)
    checker = ((np.floor(u * 4) + np.floor(v * 4)) % 2).astype(np.float32)
    joint, _ = _bond(4, 4, 0.03, 0.03, running=False)
    add('checker', checker, 1 + 0.06 * noise(32, 2) - 0.3 * joint, (4, 4), 0, 0.24)
    dots = (((u * 10 % 1 - 0.5) ** 2 + (v * 10 % 1 - 0.5) ** 2) < 0.09).astype(np.float32)
    add('studs', dots * 0.9, 1 + 0.25 * dots + 0.05 * noise(16), (3.5, 3.5), 0, 0.26)
    add('marking', (noise(20, 3) > 1.3) * 0.8, 1 + 0.06 * noise(48, 2), (4, 4), 0, 0.6)

    # ---- structures --------------------------------------------------------------------------------------------
    add('plaster', np.clip(0.12 * noise(3, 4), 0, 1), 1 + 0.05 * noise(8, 4), (5, 5), 0, 0.4)
    joint, stone = _bond(4, 12, 0.03, 0.09)
    add('brick_wall', joint, rng.normal(1, 0.14, 48)[stone], (2.4, 2.4), 0, 0.34)
    for index, (nu, nv, w, h, sill) in enumerate(
        [(4, 4, 0.5, 0.5, 0.28), (3, 4, 0.72, 0.42, 0.34), (5, 4, 0.36, 0.62, 0.2), (2, 4, 0.9, 0.55, 0.25)]
    ):
        mask, shade = _windows(rng, nu, nv, w, h, sill)
        wall = shade * (1 + 0.05 * noise(8, 4)) if index % 2 else shade * rng.normal(1, 0.05, (SIZE, 1))
        add(f'facade_{index}', mask, wall, (12, 12.4), 0.5, 0.38)
    mask, shade = _windows(rng, 6, 4, 0.88, 0.86, 0.06, 0.02)
    add('facade_glass', mask, shade, (9, 13), 0.8, 0.25)
    shop, shade = _windows(rng, 3, 1, 0.84, 0.66, 0.08, 0.06)
    sign = ((v > 0.8) & (v < 0.94)).astype(np.float32)
    letters = (noise(32, 1) > 0.2) * sign
    add('shop', np.maximum(shop, letters), shade * (1 - 0.35 * sign * (1 - letters)), (9, 0), 0.4, 0.32)
    door = ((np.abs(u - 0.5) < 0.34) & (v < 0.86)).astype(np.float32)
    panel = ((np.abs(np.abs(u - 0.5) - 0.16) < 0.1) & (np.abs(v - 0.45) < 0.3)).astype(np.float32)
    add('door', door * (1 - 0.4 * panel), 1 - 0.3 * panel, (0, 0), 0, 0.35)
    ribs = (u * 12 % 1 < 0.5).astype(np.float32)
    add('ribs', ribs * 0.35, 1 + 0.22 * (ribs - 0.5), (2.4, 2.4), 0, 0.45)
    plank = np.floor(u * 8).astype(np.int64)
    slit = (u * 8 % 1 < 0.1).astype(np.float32)
    add('planks', slit, rng.normal(1, 0.13, 8)[plank] + 0.07 * noise(4, 4, 0.6, (4, 1)), (2.4, 2.4), 0, 0.35)
    panel, _ = _bond(1, 2, 0.03, 0.04, running=False)
    add('panels', panel, 1 + 0.1 * noise(4, 5) - 0.2 * panel, (2.5, 2.5), 0, 0.38)
    joint, stone = _bond(10, 12, 0.08, 0.16)
    add('roof', joint, rng.normal(1, 0.12, 120)[stone], (4, 4), 0, 0.3)
    mesh = ((u * 14 % 1 < 0.14) | (v * 8 % 1 < 0.1)).astype(np.float32)
    add('bars', mesh, 1 + 0.1 * noise(4), (2.8, 2.8), 0, 0.35)
    add('metal', np.clip(0.15 * noise(4, 3), 0, 1), 1 + 0.04 * noise(4, 3), (2, 2), 0, 0.5)
    bands = (v * 4 % 1 < 0.5).astype(np.float32)
    add('bands', bands, one, (1, 0), 0, 0.55)
    arrow = ((np.abs(u - 0.5) < 0.36) & (np.abs(v - 0.5) < 0.36)).astype(np.float32)
    glyph = arrow * ((np.abs(u - 0.5) < 0.08) | (np.abs(v - 0.6) < 0.08))
    add('sign', np.clip(arrow - glyph, 0, 1), 1 + 0.3 * glyph, (0, 0), 0, 0.9)
    poster = np.clip(0.5 + 0.7 * noise(3, 3, 0.7), 0, 1)
    add('poster', poster, one, (0, 0), 0, 0.5)

    # ---- vegetation --------------------------------------------------------------------------------------------
    leaves = noise(10, 4, 0.85)
    add('leaves', np.clip(0.4 + 0.4 * noise(5, 4, 0.7), 0, 1), np.clip(1 + 0.38 * leaves, 0.2, 2), (3, 3), 0, 0.55)
    needles = noise(8, 4, 0.8, (2, 1))
    add('needles', np.clip(0.3 + 0.35 * noise(5, 4), 0, 1), np.clip(0.9 + 0.36 * needles, 0.2, 2), (2.5, 2.5), 0, 0.5)
    clipped = noise(16, 3, 0.9)
    add('hedge', np.clip(0.4 + 0.35 * noise(8, 3), 0, 1), np.clip(1 + 0.3 * clipped, 0.2, 2), (2.4, 2.4), 0, 0.55)
    add(
        'bark',
        np.clip(0.4 + 0.4 * noise(4, 4, 0.6, (4, 1)), 0, 1),
        1 + 0.2 * noise(6, 4, 0.7, (4, 1)),
        (1.5, 3),
        0,
        0.3,
    )

    # ---- vehicles ----------------------------------------------------------------------------------------------
    lines = ((np.abs(u - 0.33) < 0.006) | (np.abs(u - 0.55) < 0.006) | (np.abs(u - 0.74) < 0.006)) & (v > 0.2)
    skirt = (v < 0.16).astype(np.float32)
    add('car_side', np.maximum(skirt, lines), 1 + 0.12 * (v - 0.5), (0, 0), 0.1, 0.3)
    lamp = ((np.abs(u - 0.5) > 0.3) & (np.abs(u - 0.5) < 0.46) & (np.abs(v - 0.62) < 0.14)).astype(np.float32)
    plate = ((np.abs(u - 0.5) < 0.15) & (np.abs(v - 0.3) < 0.09)).astype(np.float32)
    grill = ((np.abs(u - 0.5) < 0.26) & (np.abs(v - 0.6) < 0.1)).astype(np.float32)
    add('car_end', np.maximum(grill, skirt), 1 + 0.9 * lamp + 0.6 * plate, (0, 0), 0.1, 0.55)
    pillar = (np.abs(u - 0.5) < 0.035) | (u < 0.05) | (u > 0.95)
    pane = (~pillar & (v > 0.12) & (v < 0.9)).astype(np.float32)
    add('car_windows', pane, 1 + 0.15 * pane * (v - 0.5), (0, 0), 0.55, 0.18)
    screen = ((u > 0.07) & (u < 0.93) & (v > 0.08) & (v < 0.9)).astype(np.float32)
    add('screen', screen, 1 + 0.2 * screen * (v - 0.5), (0, 0), 0.6, 0.18)
    band = ((v > 0.42) & (v < 0.82) & (u % 1 > 0.07)).astype(np.float32)
    flash = ((v > 0.2) & (v < 0.28)).astype(np.float32)
    add('bus_side', np.maximum(band, 0.7 * flash), 1 - 0.25 * (v < 0.08), (1.5, 0), 0.55, 0.32)
    front = ((u > 0.06) & (u < 0.94) & (v > 0.34) & (v < 0.82)).astype(np.float32)
    board = ((np.abs(u - 0.5) < 0.36) & (v > 0.86) & (v < 0.95)).astype(np.float32)
    lights = ((np.abs(u - 0.5) > 0.32) & (np.abs(u - 0.5) < 0.46) & (np.abs(v - 0.14) < 0.05)).astype(np.float32)
    add('bus_end', np.maximum(front, 0.8 * board), 1 + 0.8 * lights + 0.5 * board, (0, 0), 0.55, 0.45)
    logo = ((np.abs(u - 0.5) < 0.3) & (np.abs(v - 0.58) < 0.2)).astype(np.float32)
    frame = ((u < 0.02) | (u > 0.98) | (v < 0.05) | (v > 0.96)).astype(np.float32)
    add('truck_side', np.maximum(logo * (noise(12, 2) > -0.4), 0.5 * frame), 1 - 0.3 * frame, (0, 0), 0, 0.42)
    doors = ((np.abs(u - 0.5) < 0.012) | (np.abs(np.abs(u - 0.5) - 0.3) < 0.012)).astype(np.float32)
    tail = (v < 0.1).astype(np.float32)
    add('truck_back', np.maximum(doors, tail), 1 + 0.4 * tail * (np.abs(u - 0.5) > 0.35), (0, 0), 0, 0.55)
    fold = (u * 6 % 1).astype(np.float32)
    strap = (fold < 0.1).astype(np.float32)
    add('curtain', np.maximum(strap, (v < 0.06)), 1 + 0.16 * np.sin(fold * 6.283), (4.2, 0), 0, 0.4)
    crate = (u * 4 % 1 < 0.12).astype(np.float32)
    add('container', crate * 0.25, 1 + 0.22 * np.sign(np.sin(u * 50.27)), (3, 0), 0, 0.42)
    hazard = ((u + v) * 3 % 1 < 0.5).astype(np.float32)
    add('hazard', hazard, one, (1.2, 1.2), 0, 0.5)
    edge = (((u + v) * 6 % 1 < 0.5) & (v < 0.22)).astype(np.float32)
    vents = ((np.abs(u - 0.25) < 0.14) & (v > 0.45) & (v * 20 % 1 < 0.5)).astype(np.float32)
    add('machine', np.maximum(edge, vents), 1 + 0.05 * noise(4), (0, 0), 0, 0.42)
    links = (u * 10 % 1 < 0.45).astype(np.float32)
    add('tracks', links, 1 - 0.2 * links, (2, 0), 0, 0.15)
    radius = np.sqrt((u - 0.5) ** 2 + (v - 0.5) ** 2)
    add('wheel', (radius < 0.27), 1 - 0.2 * (radius > 0.45), (0, 0), 0, 0.12)
    add('tyre', 0 * one, 1 + 0.05 * noise(16), (1, 1), 0, 0.1)
    barrier = ((u * 2.5 + v * 0.8) % 1 < 0.5).astype(np.float32)
    add('barrier', barrier, one, (2.0, 0), 0, 0.6)
    rail = ((v > 0.25) & (v < 0.45)) | ((v > 0.6) & (v < 0.85))
    add('barrier_band', rail * ((u * 4 % 1) < 0.6), 1 - 0.1 * (~rail), (1.6, 0), 0, 0.5)
    ring = ((v > 0.3) & (v < 0.5)) | ((v > 0.66) & (v < 0.84))
    add('cone', ring.astype(np.float32), one, (1, 0), 0, 0.65)

    # ---- people ------------------------------------------------------------------------------------------------
    weave = ((v * 5 % 1) < 0.4).astype(np.float32)
    add('cloth', weave * 0.35, 1 + 0.09 * noise(6, 3), (0, 0), 0, 0.3)
    vest = ((v > 0.3) & (v < 0.42)) | ((v > 0.6) & (v < 0.72)) | (np.abs(np.abs(u % 0.5 - 0.25)) < 0.03)
    add('vest', vest.astype(np.float32), one, (0, 0), 0, 0.8)
    hair = (v > 0.62).astype(np.float32)
    add('head', hair, one, (1, 0), 0, 0.4)
    add('plain', 0 * one, 1 + 0.04 * noise(4, 3), (2, 2), 0, 0.35)
    return out


class Atlas:
    """All textures with their mip levels in one flat (texels, 2) uint8 table."""

    def __init__(self):
        built = _build(np.random.default_rng(20240607))  # textures are the same in every city
        self.names = tuple(built)
        self.index = {name: number for number, name in enumerate(built)}
        self.materials = [built[name][2] for name in built]
        self.tile = np.array([material.tile for material in self.materials], np.float32)
        self.gloss = np.array([material.gloss for material in self.materials], np.float32)
        self.intensity = np.array([material.intensity for material in self.materials], np.float32)
        chunks, offsets, total = [], np.zeros((len(built), LEVELS), np.int64), 0
        self.mean = np.zeros((len(built), 2), np.float32)
        for number, name in enumerate(built):
            mask, shade, _ = built[name]
            image = np.stack([np.clip(mask, 0, 1) * 255, np.clip(shade, 0, 1.99) * 128], -1).astype(np.float32)
            self.mean[number] = image.mean((0, 1))
            for level in range(LEVELS):
                offsets[number, level] = total
                chunks.append(np.rint(image).astype(np.uint8).reshape(-1, 2))
                total += len(chunks[-1])
                h = image.shape[0] // 2
                image = image.reshape(h, 2, h, 2, 2).mean((1, 3))
        table = np.concatenate(chunks)
        self.table = np.ascontiguousarray(table).view(np.uint16).ravel()  # both channels in one gather
        self.offsets = offsets.astype(np.int32)

    def sample(self, material, u, v, level):
        """Nearest texel. material (N,) int, u, v (N,) repetitions, level (N,) int32 -> mask, shade (N,) float32."""
        side = np.right_shift(np.int32(SIZE), level)
        x = ((u - np.floor(u)) * side).astype(np.int32)
        y = ((v - np.floor(v)) * side).astype(np.int32)
        np.minimum(x, side - 1, out=x)
        np.minimum(y, side - 1, out=y)
        index = self.offsets.ravel()[material * LEVELS + level] + (side - 1 - y) * side + x
        packed = self.table[index]
        return (packed & 255).astype(np.float32) * (1 / 255), (packed >> 8).astype(np.float32) * (1 / 128)


@functools.lru_cache(maxsize=1)
def atlas() -> Atlas:
    """The one atlas of a process."""
    return Atlas()
