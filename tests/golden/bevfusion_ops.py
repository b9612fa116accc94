"""Voxelisation and pooling of lifted features against the reference implementation."""

import torch
from cases import assert_close, config, tensor
from occforge.ops import voxelize


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
