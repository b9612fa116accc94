"""Voxelisation and pooling of lifted features against the reference implementation."""

import torch
from cases import assert_close, config, tensor
from occforge.ops import hard_voxelize, voxelize


def check_bev_pool_op(npz):
    """Features that are already lifted: sums over the points of each cell, which voxelisation makes."""
    settings = config(npz)
    size = [settings[side] for side in 'HWD']  # x, y, z
    feats, coords = tensor(npz, 'in/feats').requires_grad_(), tensor(npz, 'in/coords')
    points = torch.cat([coords[:, :3] + 0.5, feats], 1)
    voxels = voxelize(points, coords[:, 3], [0, 0, 0], [1, 1, 1], size, 'sum')
    b, x, y, z = voxels.coords.long().unbind(1)
    pooled = feats.new_zeros(settings['B'], *size, feats.shape[1]).index_put((b, x, y, z), voxels.features[:, 3:])
    pooled = pooled.permute(0, 4, 3, 1, 2)  # (B, C, D, H, W)
    assert_close(pooled, npz['out/pooled'], 'pooled')
    cotangent = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
    assert_close(torch.autograd.grad(pooled, feats, cotangent)[0], npz['out/grad_feats'], 'grad_feats')


def check_voxelize(npz):
    settings = config(npz)
    points = tensor(npz, 'in/points')
    lower, upper = settings['point_cloud_range'][:3], settings['point_cloud_range'][3:]
    size = [round((high - low) / step) for low, high, step in zip(lower, upper, settings['voxel_size'])]
    grid = (lower, settings['voxel_size'], size)
    limits = settings['max_num_points'], settings['max_voxels']
    slots = hard_voxelize(points, None, *grid, *limits, reduce='none')
    mean = hard_voxelize(points, None, *grid, *limits)
    assert torch.equal(slots.features, tensor(npz, 'out/voxels'))
    for voxels in (slots, mean):
        assert torch.equal(voxels.coords[:, 1:], tensor(npz, 'out/coors_xyz')) and not voxels.coords[:, 0].any()
        assert torch.equal(voxels.counts.int(), tensor(npz, 'out/num_points'))
    assert_close(mean.features, npz['out/mean_feats'], 'mean_feats')
    every = voxelize(points, None, *grid)
    cells = torch.cat([every.coords[:, 1:], torch.full((1, 3), -1, dtype=torch.int32)])
    assert torch.equal(cells[every.inverse], tensor(npz, 'out/dynamic_coors_xyz'))
