"""Rendering along the reference's contracted rays (its NeRF head)."""

import json

import torch
from cases import assert_close, tensor
from occforge.models.heads import NerfHead, Rays, contracted_samples


def _head(npz, **fields):
    return NerfHead(**(json.loads(str(npz['cfg_json'])) | dict(sampling='renderocc') | fields))


def check_ray_samples(npz):
    head = _head(npz)
    directions = tensor(npz, 'rays_d')
    directions = directions / directions.norm(dim=-1, keepdim=True)
    points, t, inside, kept = contracted_samples(
        tensor(npz, 'rays_o'),
        directions,
        tensor(npz, 'bda'),
        head.scene_center,
        head.radius,
        head.background,
        head.world,
        head.step_size,
    )
    assert_close(t, npz['t'], 't', rtol=1e-6, atol=1e-6)
    assert_close(points, npz['ray_pts'], 'ray_pts', rtol=1e-5, atol=1e-5)
    for name in ('scene_center', 'xyz_min', 'xyz_max'):
        assert_close(getattr(head, name), npz[name], name)
    assert_close(head.background, npz['bg_len'], 'bg_len')
    assert torch.equal(inside, tensor(npz, 'inner_mask')) and torch.equal(kept, tensor(npz, 'keep_mask'))
    assert_close(points.flip(-1) / head.xyz_max.flip(-1), npz['grid_sample_index_zyx'], 'index', rtol=1e-5, atol=1e-5)


def check_nerf_head(npz):
    head = _head(npz)
    assert_close(head.class_weight, npz['class_weights'], 'class_weights')
    density, semantic = tensor(npz, 'density').requires_grad_(), tensor(npz, 'semantic').requires_grad_()
    rays, bda = tensor(npz, 'rays'), tensor(npz, 'bda')
    for b in range(len(rays)):
        own = Rays.of(rays[b])
        valid = head.usable(own)
        assert torch.equal(valid, tensor(npz, f'b{b}/valid_mask'))
        found, _ = head.render_contracted(density[b : b + 1], semantic[b : b + 1], own.take(valid), bda[b])
        depth = head.radius * (found.depth + 1e-7)
        assert_close(depth, npz[f'b{b}/render_depth'], 'render_depth', rtol=1e-4, atol=1e-3)
        assert_close(found.semantics, npz[f'b{b}/render_semantic'], 'render_semantic', rtol=1e-4, atol=1e-4)
        assert_close(found.transmittance, npz[f'b{b}/alphainv_last'], 'alphainv_last', rtol=1e-4, atol=1e-5)
    losses = head(density, semantic, list(rays), bda)
    assert set(losses) == {name.removeprefix('loss/') for name in npz.files if name.startswith('loss/')}
    # The reference computes alpha as 1 - (1 + e^(d + b))^-0.5 in float32, which rounds that of empty space, 5e-7, to a
    # multiple of 2^-24: by 5 %. Rays through empty space alone have a depth of some 1e-3, whose logarithm shows it.
    rounded = dict(rtol=5e-3, atol=0)
    sums = dict(rtol=1e-4, atol=0)
    tolerance = dict(loss_render_depth=rounded, loss_sdf_entropy=sums, loss_sdf_distortion=sums)
    for name, value in losses.items():
        assert_close(value, npz[f'loss/{name}'], name, **tolerance.get(name, dict(rtol=1e-5, atol=0)))
    total = sum(losses.values())
    assert_close(total, npz['total'], 'total', **rounded)
    grad_density, grad_semantic = torch.autograd.grad(total, (density, semantic))
    assert_close(grad_semantic, npz['grad_semantic'], 'grad_semantic', rtol=1e-4, atol=1e-7)
    stored = tensor(npz, 'grad_density')
    assert (grad_density - stored).norm() <= 0.05 * stored.norm()
    seen = torch.cat([tensor(npz, f'b{b}/render_depth') for b in range(len(rays))])
    if seen.min() > 0.3:  # no such ray
        assert_close(grad_density, stored, 'grad_density', rtol=1e-3, atol=1e-5)
