"""The rendering operators against the reference implementation."""

import math

import numpy as np
import torch
from cases import assert_close, tensor
from occforge.ops import (
    alpha_to_weights,
    clip_rays,
    density_to_alpha,
    distortion,
    ray_offsets,
    sample_rays,
    shift_for_alpha,
)

CLOSE = dict(rtol=1e-5, atol=1e-6)


def _check_alpha(npz, shift):
    density = tensor(npz, 'density').requires_grad_()
    alpha = density_to_alpha(density, shift, tensor(npz, 'interval'))
    assert_close(alpha, npz['alpha'], 'alpha', **CLOSE)
    (found,) = torch.autograd.grad(alpha, density, tensor(npz, 'grad_alpha'))
    assert_close(found, npz['grad_density'], 'grad_density', **CLOSE)


def check_raw2alpha(npz):
    shift = float(npz['shift'][0])
    assert math.isclose(shift, shift_for_alpha(1e-6), rel_tol=1e-6)
    _check_alpha(npz, shift)


def check_ops_misc(npz):
    _check_alpha(npz, float(npz['shift']))
    # the look-up of points in a mask: rounded half away from zero, False outside
    at = tensor(npz, 'query_xyz') * tensor(npz, 'xyz2ijk_scale') + tensor(npz, 'xyz2ijk_shift')
    cell = (at.sign() * (at.abs() + 0.5).floor()).long()
    world = tensor(npz, 'mask_world')
    size = torch.tensor(world.shape)
    inside = ((cell >= 0) & (cell < size)).all(1)
    x, y, z = cell.clamp(min=0).minimum(size - 1).unbind(1)
    assert torch.equal(world[x, y, z] & inside, tensor(npz, 'mask_out'))


def check_alphas2weights(npz):
    alpha = tensor(npz, 'alpha').requires_grad_()
    offset = ray_offsets(tensor(npz, 'ray_id'), int(npz['n_rays']))
    weights, last = alpha_to_weights(alpha, offset, float(npz['early_stop_T']))
    assert_close(weights, npz['weights'], 'weights', **CLOSE)
    assert_close(last, npz['alphainv_last'], 'alphainv_last', **CLOSE)
    upstream = (tensor(npz, 'grad_weights'), tensor(npz, 'grad_last'))
    (found,) = torch.autograd.grad((weights, last), alpha, upstream)
    assert_close(found, npz['grad_alpha'], 'grad_alpha', rtol=1e-4, atol=1e-5)


def check_distortion(npz):
    weights, ray = tensor(npz, 'weights').requires_grad_(), tensor(npz, 'ray_id')
    rays = int(ray.max()) + 1
    loss = distortion(weights, tensor(npz, 's'), ray_offsets(ray, rays), float(npz['interval'])).sum() / rays
    assert_close(loss, npz['loss'], 'loss', **CLOSE)
    (found,) = torch.autograd.grad(loss, weights)
    assert_close(found, npz['grad_weights'], 'grad_weights', **CLOSE)


def check_aabb(npz):
    origins, directions = tensor(npz, 'rays_o'), tensor(npz, 'rays_d')
    near, far = clip_rays(origins, directions, npz['xyz_min'], npz['xyz_max'], float(npz['near']), float(npz['far']))
    assert_close(near, npz['t_min'], 't_min', **CLOSE)
    assert_close(far, npz['t_max'], 't_max', **CLOSE)
    length, step = directions.norm(dim=1), float(npz['stepdist'])
    samples = sample_rays(near, far, step / length, position=0.0, min_count=1)
    np.testing.assert_array_equal(samples.offset.diff().numpy(), npz['n_samples'])
    np.testing.assert_array_equal(samples.ray.numpy(), npz['ray_id'])
    places = torch.arange(len(samples.ray)) - samples.offset[samples.ray]
    np.testing.assert_array_equal(places.numpy(), npz['step_id'])
    points = origins[samples.ray] + samples.t[:, None] * directions[samples.ray]
    assert_close(points[: len(npz['ray_pts'])], npz['ray_pts'], 'ray_pts', rtol=1e-5, atol=1e-4)
    low, high = tensor(npz, 'xyz_min'), tensor(npz, 'xyz_max')
    outside = ((points < low) | (points > high)).any(1)
    clear = ((points - low).abs().amin(1) > 1e-4) & ((points - high).abs().amin(1) > 1e-4)
    np.testing.assert_array_equal(outside[clear].numpy(), npz['mask_outbbox'][clear.numpy()])
