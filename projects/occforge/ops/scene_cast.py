"""Ray casting of analytic solids (boxes, cones, ellipsoids) above a height field.

What the synthetic city is rendered with: a scene is a table of primitives with a bounding volume hierarchy (surface
area heuristic, Wald 2007, "On fast construction of SAH-based bounding volume hierarchies") and a bilinear height
field with tile maxima. float64 arithmetic; not differentiable. Only the outside of a solid is hit: a ray that starts
inside one does not see it.
"""

import math
from typing import NamedTuple

import torch

from ._backend import choose, compiled

BOX, CONE, ELLIPSOID = 0, 1, 2
COLUMNS = 20  # of a primitive's row, see csrc/render/scene_cast_kernel.h
TILE = 16  # cells along a side of a tile of the maxima table


class SceneHits(NamedTuple):
    """What R rays met."""

    primitive: torch.Tensor  # (R,) int32: row of the primitive, P for the ground, -1 for nothing
    distance: torch.Tensor  # (R,) float64: in units of the direction's length, inf for nothing
    normal: torch.Tensor  # (R, 3) float32: outward unit normal in world axes
    uv: torch.Tensor  # (R, 2) float32: metres along the face from its lower corner (ground: world x, y)
    face: torch.Tensor  # (R,) uint8: 0..5 = -x +x -y +y -z +z of a box; 1 side, 4 bottom, 5 top of a cone; ground 5


def primitive_rows(kind, centre, rotation, half, top=(1.0, 1.0), shift=0.0) -> torch.Tensor:
    """One row, or rows, of the primitive table.

    Args:
        kind: BOX, CONE or ELLIPSOID (scalar or (P,)).
        centre: (..., 3) world metres.
        rotation: (..., 3, 3) local-to-world.
        half: (..., 3) half sizes; for a cone (bottom radius, top radius, half height).
        top: (..., 2) scale of a box's top face along local x and y.
        shift: (...) metres by which a box's top face is moved along local x.

    Returns:
        (P, 20) float64.
    """
    centre = torch.as_tensor(centre, dtype=torch.float64).reshape(-1, 3)
    count = len(centre)
    rows = torch.zeros(count, COLUMNS, dtype=torch.float64)
    rows[:, 0] = torch.as_tensor(kind, dtype=torch.float64)
    rows[:, 1:4] = centre
    rotation = torch.as_tensor(rotation, dtype=torch.float64).reshape(-1, 3, 3)
    rows[:, 4:13] = rotation.transpose(1, 2).reshape(-1, 9)
    rows[:, 13:16] = torch.as_tensor(half, dtype=torch.float64).reshape(-1, 3)
    rows[:, 16:18] = torch.as_tensor(top, dtype=torch.float64).reshape(-1, 2)
    rows[:, 18] = torch.as_tensor(shift, dtype=torch.float64)
    return rows


class Scene:
    """Primitives and ground, ready for casting.

    Args:
        primitives: (P, 20) float64 on the CPU, rows of :func:`primitive_rows`.
        heights: (rows, cols) float32 node heights (row = y, column = x), or None for no ground.
        lower: world (x, y) of node (0, 0), metres.
        cell: spacing of the nodes, metres.
        maxima: tile maxima of the same heights (:func:`tile_maxima`), to save computing them again.

    Raises:
        ValueError: for tensors of another shape or type, heights that are not finite, or a primitive without extent.
    """

    def __init__(self, primitives, heights=None, lower=(0.0, 0.0), cell=1.0, maxima=None):
        if primitives.dim() != 2 or primitives.size(1) != COLUMNS or primitives.dtype != torch.float64:
            raise ValueError(
                f'primitives must be (P, {COLUMNS}) float64, got {tuple(primitives.shape)} {primitives.dtype}'
            )
        if heights is None:
            heights = torch.empty(0, 0)
        if heights.dim() != 2 or heights.dtype != torch.float32:
            raise ValueError(f'heights must be (rows, cols) float32, got {tuple(heights.shape)} {heights.dtype}')
        if not cell > 0 or not all(math.isfinite(v) for v in lower):
            raise ValueError(f'the ground needs a positive cell and a finite corner, got {cell} and {tuple(lower)}')
        if maxima is None:
            maxima = tile_maxima(heights)
        self.primitives = primitives.contiguous()
        self.heights = heights.contiguous()
        self.maxima = maxima
        self.lower = (float(lower[0]), float(lower[1]))
        self.cell = float(cell)
        self.top = float(maxima.max()) + 1e-4 if maxima.numel() else 0.0
        table = self.primitives.cpu()
        self.tree = choose('scene_bvh', table.device, scene_bvh_reference)(table)

    def to(self, device) -> 'Scene':
        """The same scene on another device."""
        other = object.__new__(Scene)
        other.__dict__.update(self.__dict__)
        for name in ('primitives', 'heights', 'maxima'):
            setattr(other, name, getattr(self, name).to(device))
        other.tree = tuple(part.to(device) for part in self.tree)
        return other

    def cast(self, origins, directions, near: float = 1e-6, far: float = math.inf) -> SceneHits:
        """First hits of the rays ``origins + t directions``, near < t < far. NaN and infinite rays hit nothing.
        The ground is seen from above: a ray that starts below it does not meet it.

        Args:
            origins: (R, 3) or (1, 3) float64, world metres.
            directions: (R, 3) float64; distances are in multiples of their length.
        """
        return SceneHits(*self._run(origins, directions, near, far, False))

    def occluded(self, origins, directions, near: float = 1e-4, far: float = math.inf, ground: bool = True):
        """Whether anything lies on the rays: (R,) bool. Arguments as :meth:`cast`; ``ground=False`` leaves it out."""
        return self._run(origins, directions, near, far, True, ground)[0] >= 0

    def _run(self, origins, directions, near, far, any_hit, ground=True):
        for name, value in (('origins', origins), ('directions', directions)):
            if value.dim() != 2 or value.size(1) != 3 or value.dtype != torch.float64:
                raise ValueError(f'{name} must be (R, 3) float64, got {tuple(value.shape)} {value.dtype}')
        if origins.size(0) not in (1, directions.size(0)):
            raise ValueError(f'{origins.size(0)} origins do not match {directions.size(0)} directions')
        heights, maxima = (self.heights, self.maxima) if ground else (self.heights[:0], self.maxima[:0])
        far = min(float(far), 1e9)
        run = choose('scene_cast', directions.device, scene_cast_reference)
        return run(
            self.primitives, *self.tree, heights, maxima, *self.lower, self.cell, self.top, origins, directions, near,
            far, any_hit,
        )  # fmt: skip


def tile_maxima(heights: torch.Tensor) -> torch.Tensor:
    """Largest node height of every tile of 16 x 16 cells: (ceil((rows-1)/16), ceil((cols-1)/16)) float32.

    Raises:
        ValueError: if a height is not finite.
    """
    rows, cols = heights.shape
    if rows < 2 or cols < 2:
        return heights.new_zeros(0, 0)
    if not bool(torch.isfinite(heights).all()):
        raise ValueError('the height field holds values that are not finite')
    pad = (0, (1 - cols) % TILE, 0, (1 - rows) % TILE)
    padded = torch.nn.functional.pad(heights[None], pad, mode='replicate')[None]
    return torch.nn.functional.max_pool2d(padded, TILE + 1, TILE)[0, 0].contiguous()


# (ray, cell of the ground) pairs that the reference holds at a time, some hundred bytes each
_REFERENCE_PAIRS = 1 << 21


def scene_bvh_reference(primitives) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator ``occforge::scene_bvh`` in plain torch: the same checks, and a tree that is one leaf (for
    ``scene_cast_reference``, which does not look at it)."""
    if not bool(primitives.isfinite().all()):
        row, column = (~primitives.isfinite()).nonzero()[0].tolist()
        raise ValueError(f'scene_bvh: primitive {row} has a value that is not finite in column {column}')
    kind, (a, b, c) = primitives[:, 0], primitives[:, 13:16].unbind(1)
    unknown = ((kind != BOX) & (kind != CONE) & (kind != ELLIPSOID)).nonzero()
    if len(unknown):
        raise ValueError(f'scene_bvh: primitive {int(unknown[0])} has the unknown type {float(kind[unknown[0]]):g}')
    solid = (c > 0) & (a >= 0) & (b >= 0) & ((kind == CONE) | ((a > 0) & (b > 0)))
    if not bool(solid.all()):
        raise ValueError(f'scene_bvh: primitive {int((~solid).nonzero()[0])} has no extent')
    count = len(primitives)
    everywhere = torch.tensor([[-math.inf] * 3 + [math.inf] * 3])
    leaf = torch.tensor([[0, count]], dtype=torch.int32)
    return everywhere[:count], leaf[:count], torch.arange(count, dtype=torch.int32)


def scene_cast_reference(
    primitives, bounds, links, order, heights, maxima, x0, y0, cell, top, origins, directions, near, far, any_hit
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every ray against every primitive and every cell of the ground, in plain torch: for tests, and where nothing is
    compiled. Time R x cells, memory in slices of rays.

    Arguments and results as the operator ``occforge::scene_cast``.
    """
    rays = len(directions)
    origins = origins.expand(rays, 3)
    step = max(1, _REFERENCE_PAIRS // max(1, heights.numel()))
    if rays > step:
        slices = [
            scene_cast_reference(
                primitives, bounds, links, order, heights, maxima, x0, y0, cell, top, o, d, near, far, any_hit
            )
            for o, d in zip(origins.split(step), directions.split(step))
        ]
        return tuple(torch.cat(parts) for parts in zip(*slices))
    best = torch.full((rays,), math.inf, dtype=torch.float64)
    primitive = torch.full((rays,), -1, dtype=torch.int32)
    normal = torch.zeros(rays, 3, dtype=torch.float64)
    uv = torch.zeros(rays, 2, dtype=torch.float64)
    face = torch.zeros(rays, dtype=torch.uint8)
    if heights.numel():
        t = _ground_times(heights, x0, y0, cell, origins, directions, near, far)
        hit = t < best
        point = origins + t.nan_to_num(posinf=0.0)[:, None] * directions
        slope = _ground_normal(heights, x0, y0, cell, point)
        best = torch.where(hit, t, best)
        primitive[hit] = len(primitives)
        normal[hit], uv[hit], face[hit] = slope[hit], point[hit, :2], 5
    for index, row in enumerate(primitives):
        rotation = row[4:13].reshape(3, 3)
        o, d = (origins - row[1:4]) @ rotation.T, directions @ rotation.T
        solve = {BOX: _box_times, CONE: _cone_times, ELLIPSOID: _ellipsoid_times}[int(row[0])]
        t, n, f = solve(row, o, d, near, far)
        hit = t < best
        if not hit.any():
            continue
        p = o[hit] + t[hit, None] * d[hit]
        best[hit], primitive[hit], face[hit] = t[hit], index, f[hit]
        normal[hit] = n[hit] @ rotation
        uv[hit] = _surface_coordinates(row, p, f[hit])
    lost = ~(torch.isfinite(origins) & torch.isfinite(directions)).all(1)  # hits nothing
    best[lost], primitive[lost], normal[lost], uv[lost], face[lost] = math.inf, -1, 0, 0, 0
    if any_hit:
        normal, uv, face = normal[:0], uv[:0], face[:0]
    return primitive, best, normal.float(), uv.float(), face


def _surface_coordinates(row, p, face):
    a, b, c = row[13], row[14], row[15]
    x, y, z = p.unbind(1)
    if row[0] == BOX:
        u = torch.where(face < 2, y + b, x + a)
        return torch.stack([u, torch.where(face < 4, z + c, y + b)], 1)
    radius = torch.maximum(a, b) if row[0] == CONE else a
    u = (torch.atan2(y, x) + math.pi) * radius
    if row[0] == ELLIPSOID:
        return torch.stack([u, (torch.asin((z / c).clamp(-1, 1)) + math.pi / 2) * c], 1)
    cap = face >= 4
    return torch.stack([torch.where(cap, x + radius, u), torch.where(cap, y + radius, z + c)], 1)


def _box_times(row, o, d, near, far):
    a, b, c, tx, ty, shift = row[13:19]
    kx, ky, ks = a * (1 - tx) / (2 * c), b * (1 - ty) / (2 * c), shift / (2 * c)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    m = torch.stack([
        torch.stack([-one, zero, kx + ks]), torch.stack([one, zero, kx - ks]),
        torch.stack([zero, -one, ky]), torch.stack([zero, one, ky]),
        torch.stack([zero, zero, -one]), torch.stack([zero, zero, one]),
    ])  # fmt: skip
    h = torch.stack([a - (kx + ks) * c, a - (kx - ks) * c, b - ky * c, b - ky * c, c, c])
    speed, gap = d @ m.T, h - o @ m.T
    times = gap / torch.where(speed == 0, torch.ones_like(speed), speed)
    lower = torch.where(speed < 0, times, torch.full_like(times, -math.inf))
    lo, f = lower.max(1)
    hi = torch.where(speed > 0, times, torch.full_like(times, math.inf)).amin(1)
    outside = ((speed == 0) & (gap < 0)).any(1)
    ok = (lo <= hi) & ~outside & (lo > near) & (lo < far)
    n = (m / m.norm(dim=1, keepdim=True))[f]
    return torch.where(ok, lo, torch.full_like(lo, math.inf)), n, f.to(torch.uint8)


def _cone_times(row, o, d, near, far):
    r0, r1, c = row[13], row[14], row[15]
    slope = (r1 - r0) / (2 * c)
    middle, rate = r0 + slope * (o[:, 2] + c), slope * d[:, 2]
    qa = d[:, 0] ** 2 + d[:, 1] ** 2 - rate**2
    qb = o[:, 0] * d[:, 0] + o[:, 1] * d[:, 1] - middle * rate
    qc = o[:, 0] ** 2 + o[:, 1] ** 2 - middle**2
    disc = qb**2 - qa * qc
    root = disc.clamp(min=0).sqrt()
    norm = 1 / torch.sqrt(1 + slope**2)
    inside = (qc < 0) & (o[:, 2].abs() < c)
    best = torch.full_like(qa, math.inf)
    normal = torch.zeros_like(o)
    face = torch.ones(len(o), dtype=torch.uint8)
    for sign in (-1, 1):
        t = (-qb + sign * root) / torch.where(qa.abs() > 1e-14, qa, torch.ones_like(qa))
        p = o + t[:, None] * d
        radial = p[:, :2].norm(dim=1)
        n = torch.cat([p[:, :2] / radial.clamp(min=1e-300)[:, None], -slope.expand(len(o), 1)], 1) * norm
        ok = (disc > 0) & (qa.abs() > 1e-14) & (p[:, 2].abs() <= c) & (middle + rate * t >= 0) & (radial > 0)
        ok &= ((n * d).sum(1) < 0) & (t > near) & (t < far) & (t < best) & ~inside
        best, normal = torch.where(ok, t, best), torch.where(ok[:, None], n, normal)
    top = d[:, 2] < 0
    radius = torch.where(top, r1, r0)
    t = (torch.where(top, c, -c) - o[:, 2]) / torch.where(d[:, 2] == 0, torch.ones_like(qa), d[:, 2])
    p = o + t[:, None] * d
    ok = (d[:, 2] != 0) & (p[:, :2].square().sum(1) <= radius**2) & (t > near) & (t < far) & (t < best) & ~inside
    best = torch.where(ok, t, best)
    face = torch.where(ok, torch.where(top, 5, 4).to(torch.uint8), face)
    cap = torch.stack([torch.zeros_like(qa), torch.zeros_like(qa), torch.where(top, 1.0, -1.0).double()], 1)
    return best, torch.where(ok[:, None], cap, normal), face


def _ellipsoid_times(row, o, d, near, far):
    half = row[13:16]
    x, y = o / half, d / half
    qa, qb, qc = (y * y).sum(1), (x * y).sum(1), (x * x).sum(1) - 1
    disc = qb**2 - qa * qc
    t = (-qb - disc.clamp(min=0).sqrt()) / qa
    ok = (qc > 0) & (disc > 0) & (qb < 0) & (t > near) & (t < far)
    n = (o + t[:, None] * d) / half**2
    n = n / n.norm(dim=1, keepdim=True)
    return torch.where(ok, t, torch.full_like(t, math.inf)), n, torch.ones(len(o), dtype=torch.uint8)


def _cells(heights):
    h = heights.double()
    h00, h10, h01, h11 = h[:-1, :-1], h[:-1, 1:], h[1:, :-1], h[1:, 1:]
    return h00, h10 - h00, h01 - h00, h11 - h10 - h01 + h00


def _ground_times(heights, x0, y0, cell, o, d, near, far):
    h00, hx, hy, hxy = (part.reshape(1, -1) for part in _cells(heights))
    rows, cols = heights.shape
    j, i = torch.meshgrid(torch.arange(rows - 1.0), torch.arange(cols - 1.0), indexing='ij')
    i, j = i.reshape(1, -1).double(), j.reshape(1, -1).double()
    u0, v0 = (o[:, :1] - x0) / cell - i, (o[:, 1:2] - y0) / cell - j
    bx, by, dz = d[:, :1] / cell, d[:, 1:2] / cell, d[:, 2:]
    fa = -hxy * bx * by
    fb = dz - (hx * bx + hy * by + hxy * (u0 * by + v0 * bx))
    fc = o[:, 2:] - (h00 + hx * u0 + hy * v0 + hxy * u0 * v0)
    best = torch.full_like(fa, math.inf)
    disc = (fb * fb - 4 * fa * fc).clamp(min=0)
    q = -0.5 * (fb + torch.where(fb < 0, -1.0, 1.0) * disc.sqrt())
    linear = fa.abs() < 1e-15
    none = torch.full_like(fa, math.nan)
    for t in (q / torch.where(linear, none, fa), fc / torch.where(q == 0, none, q)):
        u, v = u0 + bx * t, v0 + by * t
        falling = 2 * fa * t + fb < 0
        ok = (u >= -1e-12) & (u <= 1 + 1e-12) & (v >= -1e-12) & (v <= 1 + 1e-12) & falling & (t > near) & (t < far)
        ok &= (fb * fb - 4 * fa * fc >= 0) & t.isfinite()
        best = torch.where(ok & (t < best), t, best)
    return best.amin(1)


def _ground_normal(heights, x0, y0, cell, point):
    _, hx, hy, hxy = _cells(heights)
    x, y = (point[:, 0] - x0) / cell, (point[:, 1] - y0) / cell
    i, j = x.floor().long().clamp(0, hx.size(1) - 1), y.floor().long().clamp(0, hx.size(0) - 1)
    u, v = x - i, y - j
    n = torch.stack([-(hx[j, i] + hxy[j, i] * v) / cell, -(hy[j, i] + hxy[j, i] * u) / cell, torch.ones_like(u)], 1)
    return n / n.norm(dim=1, keepdim=True)


if compiled('scene_bvh', 'scene_cast'):

    @torch.library.register_fake('occforge::scene_bvh')
    def _(primitives):
        nodes = torch.library.get_ctx().new_dynamic_size()
        order = primitives.new_empty(primitives.size(0), dtype=torch.int32)
        bounds = primitives.new_empty((nodes, 6), dtype=torch.float32)
        return bounds, primitives.new_empty((nodes, 2), dtype=torch.int32), order

    @torch.library.register_fake('occforge::scene_cast')
    def _(
        primitives, bounds, links, order, heights, maxima, x0, y0, cell, top, origins, directions, near, far, any_hit
    ):
        rays = directions.size(0)
        full = 0 if any_hit else rays
        return (
            directions.new_empty(rays, dtype=torch.int32),
            directions.new_empty(rays),
            directions.new_empty(full, 3, dtype=torch.float32),
            directions.new_empty(full, 2, dtype=torch.float32),
            directions.new_empty(full, dtype=torch.uint8),
        )
