"""Sparse convolution and voxelisation against the reference implementation's (MinkowskiEngine's) layouts."""

import torch
from cases import assert_close, config, tensor
from occforge.ops import voxelize
from occforge.ops.sparse_conv import neighbour_map, sparse_conv, sparse_sites

ROOM = 64  # coordinates may be negative: moved by a multiple of every stride before, and back after


def weight_of(kernel):
    """(K, C_in, C_out) with x fastest among the taps -> (C_out, K, C_in) with x slowest."""
    side = round(len(kernel) ** (1 / 3))
    taps = kernel.unflatten(0, (side, side, side)).permute(2, 1, 0, 3, 4)
    return taps.flatten(0, 2).permute(2, 0, 1)


def triple(value):
    return (value,) * 3


def assert_rows(coords, out, npz, name, stride=1):
    """Compare rows that are sorted by their coordinates; ours count in strides, the reference's in voxels."""
    coords = torch.cat([coords[:, :1], (coords[:, 1:] - ROOM // stride) * stride], 1).long()
    order = torch.arange(len(coords))
    for column in (3, 2, 1, 0):
        order = order[coords[order, column].argsort(stable=True)]
    assert torch.equal(coords[order], tensor(npz, f'{name}_out_coords'))
    assert_close(out[order], npz[f'{name}_out'], name)


def check_conv_layout(npz):
    coords, features = tensor(npz, 'in_coords'), tensor(npz, 'in_feats')
    coords = torch.cat([coords[:, :1], coords[:, 1:] + ROOM], 1).int()
    assert int(coords.min()) >= 0 and int(coords[:, 1:].max()) < 2 * ROOM
    grid = triple(2 * ROOM)
    for name, dilation in (('k3', 1), ('k5', 1), ('k3d3', 3)):
        weight = weight_of(tensor(npz, f'{name}_kernel'))
        side = round(weight.shape[1] ** (1 / 3))
        geometry = triple(side), triple(1), triple(dilation * (side // 2)), triple(dilation)
        index = neighbour_map(coords, coords, grid, *geometry)
        assert_rows(coords, sparse_conv(features, weight, index), npz, name)
    geometry = triple(2), triple(2), triple(0), triple(1)
    coarse = sparse_sites(coords, triple(ROOM), *geometry)
    down = neighbour_map(coords, coarse, grid, *geometry)
    found = sparse_conv(features, weight_of(tensor(npz, 'down_kernel')), down)
    assert_rows(coarse, found, npz, 'down', stride=2)
    up = neighbour_map(coarse, coords, triple(ROOM), *geometry, transposed=True)
    assert_rows(coords, sparse_conv(found, weight_of(tensor(npz, 'up_kernel')), up), npz, 'up')
    assert_rows(coords, features @ tensor(npz, 'point_kernel'), npz, 'point')


def check_quantize(npz):
    size = config(npz, 'cfg_json')['voxel_size']
    points, features = tensor(npz, 'in_points'), tensor(npz, 'in_feats')
    cells = (points / size).floor()
    low = cells.amin(0)
    grid = (cells.amax(0) - low + 1).int().tolist()
    # the cells are the reference's own division; voxelisation sorts and averages
    voxels = voxelize(
        torch.cat([cells - low + 0.5, features], 1), tensor(npz, 'in_batch').long(), [0, 0, 0], [1, 1, 1], grid
    )
    found = voxels.coords.long()
    found[:, 1:] += low.long()
    assert torch.equal(found, tensor(npz, 'out_coords'))
    assert_close(voxels.features[:, 3:], npz['out_feats'], 'out_feats')
    assert_close(voxels.features[voxels.inverse, 3:], npz['out_sliced'], 'out_sliced')
