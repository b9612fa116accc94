"""Supervision of a voxel volume by what rays see of it: depth and semantics in the images, no 3D labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule

from ...engine.amp import float32_island
from ...errors import ConfigError, DataError
from ...ops import (
    RayRendering,
    alpha_to_weights,
    binary_entropy,
    clip_rays,
    density_to_alpha,
    render_rays,
    render_samples,
    shift_for_alpha,
)
from ...ops.volume_render import interpolate_grids
from ..losses.rendering import (
    DEPTH_LOSSES,
    RENDEROCC_VOXEL_COUNTS,
    line_of_sight_loss,
    weighted_cross_entropy,
)
from ..losses.voxel_terms import log_frequency_weights

RAY_COLUMNS = 13  # u, v, depth, class, origin (3), direction with z-component 1 in the camera (3), unit direction (3)
NO_CLASS = 255

_MOST_DEPTH = 52.0  # metres; what the reference supervises
_PARITY_WORLD = 15  # samples inside the sphere per sample outside


class Rays(NamedTuple):
    """Rays of one sample, in the key ego frame."""

    depth: torch.Tensor  # (R,) metres along the camera's axis; 0: not measured
    label: torch.Tensor  # (R,) int64; 255: no class
    origin: torch.Tensor  # (R, 3) metres
    direction: torch.Tensor  # (R, 3), one metre along the camera's axis

    @classmethod
    def of(cls, rows: torch.Tensor) -> 'Rays':
        """From rows (R, 13): u, v, depth, class, origin, direction, unit direction."""
        if rows.ndim != 2 or rows.shape[1] != RAY_COLUMNS:
            raise DataError(f'rays are {tuple(rows.shape)}, expected (R, {RAY_COLUMNS})')
        rows = rows.float()
        return cls(rows[:, 2], rows[:, 3].long(), rows[:, 4:7], rows[:, 7:10])

    def take(self, chosen) -> 'Rays':
        return Rays(*(value[chosen] for value in self))


@MODELS.register_module()
class NerfHead(BaseModule):
    """Renders depth and semantics of rays through dense grids and compares them with 2D labels.

    Source: Pan et al., "UniOcc", 2023 (arXiv 2306.09117) and "RenderOcc", ICRA 2024. Nothing is learnt here: the grids
    come from any occupancy network, ``density`` with raw numbers (opacity of a stretch of ``voxel_size`` metres:
    1 - 1 / (1 + e^(density + shift)), shift by ``alpha_init``), ``semantic`` with logits of the classes but "free".

    Args:
        point_cloud_range: metres, x, y, z lower then upper of the grids.
        voxel_size: metres, the unit of length that the density is per, and of ``step_size``.
        use_depth_sup: compare depths.
        balance_cls_weight: weights 1 / ln(voxels of the class) of the cross entropy.
        class_weight: other weights, one a class.
        weight_depth, weight_semantic, weight_entropy_last, weight_distortion: factors of the losses; a factor of 0
            leaves the loss out.
        weight_line_of_sight: factor of ``line_of_sight_loss``: light passes to ``surface_margin`` before the measured
            depth and is stopped within that margin around it; rays measured beyond the grid are free inside it.
        surface_margin: metres along the ray.
        depth_loss: 'silog', 'log_l1', 'l1' or 'relative_l1'.
        variance_focus: of 'silog'.
        alpha_init: opacity of a stretch of ``voxel_size`` metres with density 0.
        step_size: distance of the samples, in ``voxel_size``.
        sampling: 'aabb': metric samples in the grid's box, voxel centres where they are (default). 'renderocc': the
            reference's: a sphere of ``radius`` metres with everything beyond squeezed into a shell, up to half a voxel
            off at the borders. For published checkpoints and comparisons.
        depth_mode: what is compared with the labels. 'metric_z': metres along the camera's axis, as the labels are;
            'metric_ray': metres along the ray; 'contracted' (needs, and is forced by, ``sampling='renderocc'``):
            ``radius`` t / (1 + t), what the reference takes for a depth.
        stratified: in training, samples are drawn in their intervals where a seed is given; else their middles.
        near: smallest depth of a sample, metres.
        max_depth: rays measured further away are not used.
        require_depth: leave out rays without measured depth, as the reference; False: their class is still used.
        radius, scene_center: of the reference's sphere; the centre is that of the range, ``scene_center`` is accepted
            for the published configs, where it has no effect either.
        stop, min_weight: see ``occforge.ops.render_rays``; default 1e-3 and 1e-7 of the reference, else 1e-4, 1e-5.
        num_classes: classes but "free".

    The buffers exist because the published checkpoints hold them; the config decides.
    """

    def __init__(
        self,
        point_cloud_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        voxel_size=0.4,
        scene_center=None,
        radius=39,
        use_depth_sup=True,
        balance_cls_weight=True,
        class_weight=None,
        weight_depth=1.0,
        weight_semantic=1.0,
        weight_entropy_last=0.01,
        weight_distortion=0.01,
        weight_line_of_sight=0.0,
        surface_margin=0.4,
        depth_loss='silog',
        variance_focus=0.85,
        alpha_init=1e-6,
        step_size=0.5,
        sampling='aabb',
        depth_mode=None,
        stratified=True,
        near=0.5,
        max_depth=_MOST_DEPTH,
        require_depth=None,
        stop=None,
        min_weight=None,
        num_classes=17,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        parity = sampling == 'renderocc'
        if sampling not in ('aabb', 'renderocc'):
            raise ConfigError(f"NerfHead.sampling is {sampling!r}, expected 'aabb' or 'renderocc'")
        depth_mode = depth_mode or ('contracted' if parity else 'metric_z')
        if (depth_mode == 'contracted') != parity or depth_mode not in ('metric_z', 'metric_ray', 'contracted'):
            raise ConfigError(
                f"NerfHead.depth_mode is {depth_mode!r}, expected 'contracted' with sampling='renderocc', else "
                "'metric_z' or 'metric_ray'"
            )
        if depth_loss not in DEPTH_LOSSES:
            raise ConfigError(f'NerfHead.depth_loss is {depth_loss!r}, expected one of {sorted(DEPTH_LOSSES)}')
        if parity and weight_line_of_sight:
            raise ConfigError("NerfHead.weight_line_of_sight needs sampling='aabb'")
        if not 0 < step_size or not 0 < voxel_size or not 0 < surface_margin:
            raise ConfigError('NerfHead: step_size, voxel_size and surface_margin must be above 0')
        self.point_cloud_range = tuple(float(value) for value in point_cloud_range)
        self.voxel_size, self.step_size, self.radius = float(voxel_size), float(step_size), float(radius)
        self.sampling, self.depth_mode, self.depth_loss = sampling, depth_mode, depth_loss
        self.use_depth_sup, self.variance_focus, self.stratified = use_depth_sup, variance_focus, stratified
        self.weight_depth, self.weight_semantic = weight_depth, weight_semantic
        self.weight_entropy_last, self.weight_distortion = weight_entropy_last, weight_distortion
        self.weight_line_of_sight, self.surface_margin = weight_line_of_sight, surface_margin
        self.near, self.max_depth = near, max_depth
        self.require_depth = parity if require_depth is None else require_depth
        self.stop = (1e-3 if parity else 1e-4) if stop is None else stop
        self.min_weight = (1e-7 if parity else 1e-5) if min_weight is None else min_weight
        self.num_classes = num_classes
        self.shift = shift_for_alpha(alpha_init)

        if class_weight is None:
            if balance_cls_weight and num_classes != len(RENDEROCC_VOXEL_COUNTS) - 1:
                raise ConfigError(f'NerfHead.balance_cls_weight knows 17 classes, num_classes is {num_classes}')
            balanced = log_frequency_weights(RENDEROCC_VOXEL_COUNTS)[:num_classes]
            class_weight = balanced if balance_cls_weight else torch.full((num_classes,), 1 / num_classes)
        class_weight = torch.as_tensor(class_weight, dtype=torch.float32)
        if len(class_weight) != num_classes:
            raise ConfigError(f'NerfHead.class_weight has {len(class_weight)} entries, expected {num_classes}')
        self.register_buffer('class_weight', class_weight, persistent=False)

        lower, upper = self.point_cloud_range[:3], self.point_cloud_range[3:]
        half = (upper[0] - lower[0]) / 2
        self.background = (half - self.radius) / self.radius  # thickness of the shell, in radii
        self.world = round(2 * half / self.voxel_size)  # voxels along x
        extent = torch.tensor([1 + self.background, 1 + self.background, (upper[2] - lower[2]) / (2 * half)])
        self.register_buffer('scene_center', torch.tensor([(low + high) / 2 for low, high in zip(lower, upper)]))
        self.register_buffer('scene_radius', torch.full((3,), self.radius))
        self.register_buffer('xyz_min', -extent)
        self.register_buffer('xyz_max', extent)
        self.register_buffer('act_shift', torch.tensor([self.shift]))

    # ------------------------------------------------------------------ rendering

    def opacity(self, density):
        """Share of the light that a stretch of ``voxel_size`` metres of the densities (...) takes, in [0, 1]."""
        return density_to_alpha(density, self.shift, 1.0)

    def density_of(self, opacity: float) -> float:
        """The density whose ``opacity`` is given."""
        return shift_for_alpha(opacity) - self.shift

    def render(self, density, semantic, origins, directions, grid_index=None, seed=None, layout='bnwhdc', near=None):
        """What rays see, by metric sampling in the box of the grids.

        Args:
            density: (B, X, Y, Z) in layout 'bnwhdc', (B, Z, Y, X) in 'bcdhw'.
            semantic: (B, X, Y, Z, C) or (B, C, Z, Y, X).
            origins, directions: (R, 3) in the frame of the grids; depth is measured in the directions' lengths.
            grid_index: (R,) int64, which of the B grids.
            seed: int64 tensor of one element for stratified samples.

        Returns:
            ``occforge.ops.RayRendering``.
        """
        lower, cell = self._grid_box(density, layout)
        return render_rays(
            density,
            semantic,
            origins,
            directions,
            lower,
            cell,
            step=self.step_size * self.voxel_size,
            near=self.near if near is None else near,
            unit=self.voxel_size,
            shift=self.shift,
            stop=self.stop,
            min_weight=self.min_weight,
            grid_index=grid_index,
            seed=seed,
            layout=layout,
        )

    def _grid_box(self, density, layout):
        sides = density.shape[1:] if layout == 'bnwhdc' else density.shape[:0:-1]
        lower, upper = self.point_cloud_range[:3], self.point_cloud_range[3:]
        return lower, [(high - low) / side for low, high, side in zip(lower, upper, sides)]

    def render_contracted(self, density, semantic, rays: Rays, bda):
        """What the reference's rays see of one sample's grids (1, X, Y, Z) and (1, X, Y, Z, C), and the distortion with
        the reference's normalisers (a scalar)."""
        unit = rays.direction / rays.direction.norm(dim=-1, keepdim=True)
        points, t, _, kept = contracted_samples(
            rays.origin, unit, bda, self.scene_center, self.radius, self.background, self.world, self.step_size
        )
        sides = torch.tensor(density.shape[1:], device=density.device)
        # -1 and 1 are put on the centres of the outermost cells
        cells = ((points / self.xyz_max + 1) / 2 * (sides - 1))[kept]
        s = (t / (1 + t)).expand(len(unit), -1)[kept]
        offset = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
        with torch.no_grad():  # the reference's intervals are one over the number of samples that count
            index = offset.new_zeros(len(cells))
            values = torch.cat(
                [interpolate_grids(density[..., None], part, index[: len(part)])[:, 0] for part in cells.split(1 << 20)]
            )
            weights = alpha_to_weights(density_to_alpha(values, self.shift, self.step_size), offset, self.stop)[0]
            counting = weights > self.min_weight
            samples = counting.sum().clamp(min=1)
            ray = torch.repeat_interleave(torch.arange(len(unit), device=offset.device), offset.diff())
            last = ray[counting].max() + 1 if bool(counting.any()) else samples.new_ones(())
        found = render_samples(
            density,
            semantic,
            cells,
            s,
            offset,
            interval=self.step_size,
            width=1 / samples,
            shift=self.shift,
            stop=self.stop,
            min_weight=self.min_weight,
        )
        return found, found.distortion.sum() / last

    # ------------------------------------------------------------------ losses

    def usable(self, rays: Rays) -> torch.Tensor:
        """(R,) bool: rays that have a label within range."""
        measured = (rays.depth > 0) & (rays.depth <= self.max_depth)
        if self.require_depth:
            return measured
        return measured | ((rays.depth == 0) & (rays.label < self.num_classes))

    @float32_island
    def forward(self, density, semantic, rays: Sequence[torch.Tensor], bda=None, seed=None, layout='bnwhdc') -> dict:
        """Losses of a batch.

        Args:
            density, semantic, layout: see ``render``.
            rays: B tensors (R_i, 13) (``Rays.of``) of the key ego frame, not augmented; numbers may differ.
            bda: (B, 3, 3) augmentation of the ego frame that the grids are in; None: none.
            seed: int64 tensor of one element for stratified samples in training.

        Returns:
            ``loss_render_depth``, ``loss_render_semantic``, ``loss_sdf_entropy``, ``loss_sdf_distortion`` and
            ``loss_render_sight``, weighted, means over the samples; those of weight 0 are left out. All are 0 with a
            graph where no ray can be used.

        Raises:
            DataError: other numbers of grids and lists of rays, or rows of another width.
        """
        if len(rays) != len(density):
            raise DataError(f'rays of {len(rays)} samples for the grids of {len(density)}')
        items = [Rays.of(rows.to(density.device)) for rows in rays]
        items = [item.take(self.usable(item)) for item in items]
        bda = torch.eye(3, device=density.device).expand(len(items), 3, 3) if bda is None else bda.float()
        if self.sampling == 'renderocc':
            losses = self._contracted_losses(density, semantic, items, bda, layout)
        else:
            losses = self._metric_losses(density, semantic, items, bda, seed, layout)
        nothing = (density.flatten()[:1].sum() + semantic.flatten()[:1].sum()) * 0.0
        return {name: nothing + sum(values) / len(items) for name, values in losses.items()}

    def forward_logits(self, logits, rays: Sequence[torch.Tensor], bda=None, seed=None) -> dict:
        """``forward`` for an occupancy network that classifies voxels, ours or not, without further parameters.

        The density is the log odds of "occupied"; with ``alpha_init=0.5`` a stretch of ``voxel_size`` metres of a voxel
        takes just the share of the light that is the voxel's probability of being occupied.

        Args:
            logits: (B, X, Y, Z, num_classes + 1), "free" last.
            rays, bda, seed: see ``forward``.
        """
        if logits.shape[-1] != self.num_classes + 1:
            raise ConfigError(f'NerfHead.num_classes is {self.num_classes}, the logits have {logits.shape[-1]} classes')
        semantic = logits[..., :-1]
        density = semantic.float().logsumexp(dim=-1) - logits[..., -1].float()
        return self.forward(density, semantic, rays, bda, seed)

    def _contracted_losses(self, density, semantic, items, bda, layout):
        if layout == 'bcdhw':
            density, semantic = density.permute(0, 3, 2, 1), semantic.permute(0, 4, 3, 2, 1)
        losses = self._names()
        for i, rays in enumerate(items):
            if not len(rays.depth):
                continue
            found, distortion = self.render_contracted(density[i : i + 1], semantic[i : i + 1], rays, bda[i])
            depth = self.radius * (found.depth + 1e-7)
            self._add(losses, found._replace(depth=depth), rays, depth, rays.depth, distortion)
        return losses

    def _metric_losses(self, density, semantic, items, bda, seed, layout):
        losses, counts = self._names(), [len(item.depth) for item in items]
        if not sum(counts):
            return losses
        index = torch.repeat_interleave(
            torch.arange(len(items), device=density.device), torch.tensor(counts, device=density.device)
        )
        turned = [
            item._replace(origin=item.origin @ turn.T, direction=item.direction @ turn.T)
            for item, turn in zip(items, bda)
        ]
        rays = Rays(*(torch.cat(parts) for parts in zip(*turned)))
        seed = seed if self.stratified and self.training else None
        found = self.render(density, semantic, rays.origin, rays.direction, index, seed, layout)
        # where each ray is in the grid: what was measured outside of it cannot be rendered
        lower, upper = self.point_cloud_range[:3], self.point_cloud_range[3:]
        enter, leave = clip_rays(rays.origin, rays.direction, lower, upper, self.near)
        sees = leave > enter
        inside = sees & (rays.depth >= enter) & (rays.depth <= leave)
        length = 1.0
        if self.depth_mode == 'metric_ray':
            length = torch.cat([item.direction for item in items]).norm(dim=-1)
        sight = self._sight(density, rays, index, enter, leave, sees, inside, layout)
        far = max(upper[0] - lower[0], upper[1] - lower[1]) / 2
        start = 0
        for i, count in enumerate(counts):
            own = slice(start, start + count)
            start += count
            chosen = inside[own]
            # without a measured depth the class alone speaks, of rays that cross the grid
            semantic_only = (rays.depth[own] == 0) & sees[own]
            scale = length if isinstance(length, float) else length[own]
            self._add(
                losses,
                RayRendering(*(value[own] for value in found)),
                rays.take(own),
                (found.depth[own] * scale)[chosen],
                (rays.depth[own] * scale)[chosen],
                found.distortion[own][sees[own]].sum() / sees[own].sum().clamp(min=1) / far,
                chosen | semantic_only,
                sees[own],
            )
            if sight is not None:
                free, hit, of_free, of_hit = sight
                losses['loss_render_sight'].append(
                    self.weight_line_of_sight * line_of_sight_loss(free[of_free == i], hit[of_hit == i])
                )
        return losses

    def _names(self):
        names = dict(
            loss_render_depth=self.weight_depth if self.use_depth_sup else 0.0,
            loss_render_semantic=self.weight_semantic,
            loss_sdf_entropy=self.weight_entropy_last,
            loss_sdf_distortion=self.weight_distortion,
            loss_render_sight=self.weight_line_of_sight,
        )
        return {name: [] for name, weight in names.items() if weight}

    def _add(self, losses, found, rays, depth, target, distortion, seen=slice(None), crossing=slice(None)):
        """Append one sample's losses; depths are chosen already, ``seen`` are the rays whose class counts."""
        if 'loss_render_depth' in losses:
            focus = dict(variance_focus=self.variance_focus) if self.depth_loss == 'silog' else {}
            losses['loss_render_depth'].append(
                self.weight_depth * DEPTH_LOSSES[self.depth_loss](depth, target, **focus)
            )
        if 'loss_render_semantic' in losses:
            labels = rays.label[seen]
            known = (labels >= 0) & (labels < self.num_classes)
            loss = weighted_cross_entropy(found.semantics[seen][known], labels[known], self.class_weight)
            losses['loss_render_semantic'].append(self.weight_semantic * loss)
        if 'loss_sdf_entropy' in losses:
            entropy = binary_entropy(found.transmittance[crossing])
            entropy = entropy.mean() if len(entropy) else entropy.sum()
            losses['loss_sdf_entropy'].append(self.weight_entropy_last * entropy)
        if 'loss_sdf_distortion' in losses:
            losses['loss_sdf_distortion'].append(self.weight_distortion * distortion)

    def _sight(self, density, rays, index, enter, leave, sees, inside, layout):
        """Transmittances in front of and across the measured surfaces, and the samples that they are of."""
        if not self.weight_line_of_sight:
            return None
        margin = self.surface_margin / rays.direction.norm(dim=-1)
        measured = sees & (rays.depth >= enter)
        until = torch.minimum(torch.where(inside, rays.depth - margin, rays.depth), leave)
        front = measured & (until > enter)

        def transmittance(begin, end, chosen):
            origin = rays.origin + begin[:, None] * rays.direction
            direction = (end - begin)[:, None] * rays.direction
            grid = density[..., None] if layout == 'bnwhdc' else density[:, None]
            lower, cell = self._grid_box(density, layout)
            # t runs from 0 to 1 over the stretch; of the semantics nothing is asked
            return render_rays(
                density, grid.detach(), origin[chosen], direction[chosen], lower, cell,
                step=self.step_size * self.voxel_size, far=1.0, unit=self.voxel_size, shift=self.shift, stop=0.0,
                min_weight=math.inf, grid_index=index[chosen], layout=layout,
            ).transmittance  # fmt: skip

        free = transmittance(enter, until, front)
        hit = transmittance((rays.depth - margin).clamp(min=0.0), rays.depth + margin, inside)
        return free, hit, index[front], index[inside]


def contracted_samples(origins, directions, bda, centre, radius, background, world, step_size):
    """The reference's samples along rays, with everything beyond ``radius`` squeezed into a shell.

    Source: the spherical contraction of Barron et al., "Mip-NeRF 360", CVPR 2022, as RenderOcc applies it.

    Args:
        origins, directions: (R, 3) metres and unit directions in the key ego frame.
        bda: (3, 3), applied about ``centre``.
        centre: (3,) metres.
        radius: metres of the sphere that is not contracted.
        background: thickness of the shell, in radii.
        world: voxels along x.
        step_size: distance of samples inside the sphere, in voxels.

    Returns:
        points (R, S, 3) in radii about the centre, t (S,) along the rays in radii, which points are inside (R, S) and
        which are kept (R, S): outside, one for each ``step_size`` voxels of the contracted path.
    """
    side = 2 + 2 * background
    inner = int(2 / side * world / step_size) + 1
    like = dict(device=origins.device, dtype=origins.dtype)
    edges = (
        torch.linspace(0, 2, inner + 1, **like),
        2 / torch.linspace(1, 1 / 64, inner // _PARITY_WORLD + 1, **like),
    )
    t = torch.cat([(edge[1:] + edge[:-1]) / 2 for edge in edges])
    points = ((origins - centre) / radius)[:, None] + t[:, None] * directions[:, None]
    length = points.norm(dim=-1, keepdim=True)
    inside = length <= 1
    points = torch.where(inside, points, points / length * ((1 + background) - background / length))
    points, inside = points @ bda.T.to(points), inside[..., 0]
    threshold = side / world * step_size * 0.95
    kept, path = inside.clone(), torch.zeros(len(points), **like)
    for i, step in enumerate((points[:, 1:] - points[:, :-1]).norm(dim=-1).unbind(1)):
        path = path + step
        far_enough = path > threshold
        kept[:, i + 1] |= far_enough
        path = torch.where(far_enough, 0, path)
    return points, t, inside, kept
