"""Rendering along the reference's contracted rays (its NeRF head), through ``render_samples``."""

import json

import torch
from cases import assert_close, tensor
from occforge.ops import binary_entropy, render_samples, shift_for_alpha

RADIUS, FAR = 39.0, 52.0
BACKGROUND = (40 - RADIUS) / RADIUS  # thickness of the shell that everything beyond the radius is squeezed into
HALF_EXTENT = torch.tensor([1 + BACKGROUND, 1 + BACKGROUND, 0.08])


def contracted_samples(origins, directions, bda, centre):
    """Places (R, 417, 3) in units of the radius about the centre, t (417,), which lie inside, which are kept."""
    inner = int(2 / (2 + 2 * BACKGROUND) * 200 / 0.5) + 1
    edges = torch.linspace(0, 2, inner + 1), 2 / torch.linspace(1, 1 / 64, inner // 15 + 1)
    t = torch.cat([(edge[1:] + edge[:-1]) / 2 for edge in edges])
    unit = directions / directions.norm(dim=-1, keepdim=True)
    points = ((origins - centre) / RADIUS)[:, None] + t[:, None] * unit[:, None]
    length = points.norm(dim=-1, keepdim=True)
    inside = length <= 1
    points = torch.where(inside, points, points / length * ((1 + BACKGROUND) - BACKGROUND / length))
    points, inside = points @ bda.T, inside[..., 0]
    # outside the sphere a sample is kept when the path since the last one is long enough
    threshold = (2 + 2 * BACKGROUND) / 200 * 0.5 * 0.95
    kept, path = inside.clone(), torch.zeros(len(points))
    for i, step in enumerate((points[:, 1:] - points[:, :-1]).norm(dim=-1).unbind(1)):
        path = path + step
        far_enough = path > threshold
        kept[:, i + 1] |= far_enough
        path = torch.where(far_enough, 0, path)
    return points, t, inside, kept


def check_ray_samples(npz):
    points, t, inside, kept = contracted_samples(
        tensor(npz, 'rays_o'), tensor(npz, 'rays_d'), tensor(npz, 'bda'), tensor(npz, 'scene_center')
    )
    assert_close(t, npz['t'], 't', rtol=1e-6, atol=1e-6)
    assert_close(points, npz['ray_pts'], 'ray_pts', rtol=1e-5, atol=1e-5)
    assert_close(HALF_EXTENT, npz['xyz_max'], 'xyz_max')
    assert torch.equal(inside, tensor(npz, 'inner_mask')) and torch.equal(kept, tensor(npz, 'keep_mask'))
    assert_close(points.flip(-1) / HALF_EXTENT.flip(-1), npz['grid_sample_index_zyx'], 'index', rtol=1e-5, atol=1e-5)


def check_nerf_head(npz):
    settings = json.loads(str(npz['cfg_json']))
    density, semantic = tensor(npz, 'density').requires_grad_(), tensor(npz, 'semantic').requires_grad_()
    rays, bda = tensor(npz, 'rays'), tensor(npz, 'bda')
    batch = len(rays)
    centre = torch.tensor(settings['scene_center'], dtype=torch.float32)
    size = torch.tensor(density.shape[1:])
    losses = dict.fromkeys(('depth', 'semantic', 'entropy', 'distortion'), 0.0)
    for b in range(batch):
        valid = (rays[b, :, 2] > 0) & (rays[b, :, 2] <= FAR)
        assert torch.equal(valid, tensor(npz, f'b{b}/valid_mask'))
        chosen = rays[b][valid]
        points, t, _, kept = contracted_samples(chosen[:, 4:7], chosen[:, 7:10], bda[b], centre)
        cells = (points / HALF_EXTENT + 1) / 2 * (size - 1)  # the reference puts -1 and 1 on the outer cells' centres
        offset = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
        found = render_samples(
            density[b : b + 1],
            semantic[b : b + 1],
            cells[kept],
            (t / (1 + t)).expand(len(chosen), -1)[kept],
            offset,
            interval=0.5,
            width=1 / len(npz[f'b{b}/weights']),
            shift=shift_for_alpha(1e-6),
            stop=1e-3,
            min_weight=1e-7,
        )
        depth = RADIUS * (found.depth + 1e-7)
        assert_close(depth, npz[f'b{b}/render_depth'], 'render_depth', rtol=1e-4, atol=1e-3)
        assert_close(found.semantics, npz[f'b{b}/render_semantic'], 'render_semantic', rtol=1e-4, atol=1e-4)
        assert_close(found.transmittance, npz[f'b{b}/alphainv_last'], 'alphainv_last', rtol=1e-4, atol=1e-5)
        error = (depth + 1e-7).log() - chosen[:, 2].log()
        losses['depth'] += (error.square().mean() - 0.85 * error.mean().square()).sqrt()
        losses['semantic'] += torch.nn.functional.cross_entropy(
            found.semantics, chosen[:, 3].long(), tensor(npz, 'class_weights').float()
        )
        losses['entropy'] += 0.01 * binary_entropy(found.transmittance).mean()
        losses['distortion'] += 0.01 * found.distortion.sum() / (int(npz[f'b{b}/ray_id'].max()) + 1)
    total = sum(losses.values()) / batch
    names = dict(depth='render_depth', semantic='render_semantic', entropy='sdf_entropy', distortion='sdf_distortion')
    # The reference computes alpha as 1 - (1 + e^(d + b))^-0.5 in float32, which rounds that of empty space, 5e-7, to a
    # multiple of 2^-24: by 5 %. Rays through empty space alone have a depth of some 1e-3, whose logarithm shows it.
    rounded = dict(rtol=5e-3, atol=0)
    tolerance = dict(depth=rounded, entropy=dict(rtol=1e-4, atol=0), distortion=dict(rtol=1e-4, atol=0))
    for name, value in losses.items():
        stored = npz[f'loss/loss_{names[name]}']
        assert_close(value / batch, stored, name, **tolerance.get(name, dict(rtol=1e-5, atol=0)))
    assert_close(total, npz['total'], 'total', **rounded)
    grad_density, grad_semantic = torch.autograd.grad(total, (density, semantic))
    assert_close(grad_semantic, npz['grad_semantic'], 'grad_semantic', rtol=1e-4, atol=1e-7)
    stored = tensor(npz, 'grad_density')
    assert (grad_density - stored).norm() <= 0.05 * stored.norm()
    seen = torch.cat([tensor(npz, f'b{b}/render_depth') for b in range(batch)])
    if seen.min() > 0.3:  # no such ray
        assert_close(grad_density, stored, 'grad_density', rtol=1e-3, atol=1e-5)
