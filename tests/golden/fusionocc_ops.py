"""Frustum pooling against the reference implementation."""

import numpy as np
import torch
from cases import config
from occforge.ops import frustum_indices, frustum_pool


def check_lss_pool(npz):
    settings = config(npz)
    size = [int(n) for n in npz['grid_size']]
    points = torch.from_numpy(npz['ego_points'])
    indices = frustum_indices(points, npz['grid_lower'], npz['grid_interval'], size)

    # The order inside a cell is free in the reference: compare (cell, point, pixel) as sets and the points a cell.
    kept = int(indices.offset[-1])
    point = indices.point[:kept]
    _, _, bins, height, width = indices.voxel.shape
    pixel = point // (bins * height * width) * (height * width) + point % (height * width)
    ours = torch.stack([indices.voxel.flatten()[point], point, pixel], 1).tolist()
    theirs = np.stack([npz['ranks_bev'], npz['ranks_depth'], npz['ranks_feat']], 1).tolist()
    assert sorted(ours) == sorted(theirs)
    counts = indices.offset.diff()
    np.testing.assert_array_equal(counts[counts > 0].numpy(), npz['interval_lengths'])
    starts = indices.offset[:-1][counts > 0]
    np.testing.assert_array_equal(starts.numpy(), npz['interval_starts'])

    depth = torch.from_numpy(npz['depth']).requires_grad_()
    feat = torch.from_numpy(npz['feat']).requires_grad_()
    pooled = frustum_pool(depth, feat, indices, size)
    if settings['collapse_z']:  # the planes one after the other along the channels
        pooled = torch.cat(pooled.unbind(2), 1)
    gradients = torch.autograd.grad(pooled, (depth, feat), torch.from_numpy(npz['grad_out']))
    for found, name in zip((pooled, *gradients), ('pooled', 'grad_depth', 'grad_feat')):
        torch.testing.assert_close(found.detach(), torch.from_numpy(npz[name]), rtol=1e-4, atol=1e-5)
