"""Sparse layers against dense convolutions, masked to the active voxels."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from occforge.models.sparse import (
    SparseAvgPool3d,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseSequential,
    SparseTensor,
    SubMConv3d,
    kernel_layout,
)
from torch import nn

SHAPE = (7, 6, 9)


def make(shape=SHAPE, batch=2, channels=3, density=0.3, dtype=torch.float64, seed=0, shuffle=True, grad=False):
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *shape, generator=generator) < density).nonzero().int()
    if shuffle:
        coords = coords[torch.randperm(len(coords), generator=generator)]
    features = torch.randn(len(coords), channels, dtype=torch.float64, generator=generator).to(dtype)
    return SparseTensor(features.requires_grad_(grad), coords, shape, batch)


def active(x: SparseTensor):
    ones = torch.ones(len(x.coords), 1, dtype=x.features.dtype)
    return x.replace_feature(ones).dense()


def dense_kernel(layer):
    return layer.weight.permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize('kernel, dilation', [(3, 1), (1, 1), ((3, 1, 5), 1), (3, 2), (5, (1, 2, 1))])
@pytest.mark.parametrize('bias', [True, False])
def test_submanifold_equals_masked_dense(kernel, dilation, bias):
    x = make(grad=True)
    layer = SubMConv3d(3, 4, kernel, dilation=dilation, bias=bias).double()
    y = layer(x)
    assert y.coords is x.coords and y.spatial_shape == SHAPE
    dense = F.conv3d(x.dense(), dense_kernel(layer), layer.bias, 1, layer.padding, layer.dilation)
    expected = dense * active(x)
    torch.testing.assert_close(y.dense(), expected)
    weight = torch.randn_like(expected)
    inputs = [x.features, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((y.dense() * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    ):
        assert ours is not None
        torch.testing.assert_close(ours, theirs)


GEOMETRIES = [
    (3, 2, 1, 1),
    (2, 2, 0, 1),
    (3, 1, 0, 1),
    ((3, 1, 2), (2, 1, 3), (1, 0, 1), 1),
    (3, 2, 2, 2),
    (1, 2, 0, 1),
]


@pytest.mark.parametrize('kernel, stride, padding, dilation', GEOMETRIES)
def test_strided_equals_dense_on_reached_voxels(kernel, stride, padding, dilation):
    x = make(grad=True, density=0.05)
    layer = SparseConv3d(3, 4, kernel, stride, padding, dilation).double()
    y = layer(x)
    window = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    reached = F.conv3d(active(x), window, None, layer.stride, layer.padding, layer.dilation) > 0
    expected_coords = reached[:, 0].nonzero().int()
    assert torch.equal(y.coords, expected_coords)
    expected = (
        F.conv3d(x.dense(), dense_kernel(layer), layer.bias, layer.stride, layer.padding, layer.dilation) * reached
    )
    assert (y.batch_size, *y.spatial_shape) == (2, *expected.shape[2:])
    torch.testing.assert_close(y.dense(), expected)
    inputs = [x.features, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y.dense().square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('kernel, stride, padding, extra', [(3, 2, 1, 1), (2, 2, 0, 0), ((3, 2, 1), (2, 1, 1), 0, 0)])
def test_transposed_equals_dense_on_reached_voxels(kernel, stride, padding, extra):
    x = make(grad=True, density=0.05)
    layer = SparseConvTranspose3d(3, 4, kernel, stride, padding, extra, bias=False).double()
    y = layer(x)
    options = dict(stride=layer.stride, padding=layer.padding, output_padding=layer.output_padding)
    window = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    reached = F.conv_transpose3d(active(x), window, **options) > 0
    assert torch.equal(y.coords, reached[:, 0].nonzero().int())
    expected = F.conv_transpose3d(x.dense(), layer.weight.permute(4, 0, 1, 2, 3), **options)
    torch.testing.assert_close(y.dense(), expected)


def test_inverse_returns_to_the_input_voxels():
    x = make(grad=True)
    down = SparseConv3d(3, 5, 3, 2, 1, indice_key='down').double()
    up = SparseInverseConv3d(5, 4, 3, indice_key='down', bias=False).double()
    middle = down(x)
    y = up(middle)
    assert y.coords is x.coords and y.spatial_shape == SHAPE
    size = [n - ((n - 1) // 2 * 2 + 1) for n in SHAPE]
    dense = F.conv_transpose3d(
        middle.dense(), up.weight.permute(4, 0, 1, 2, 3), stride=2, padding=1, output_padding=size
    )
    expected = dense * active(x)
    torch.testing.assert_close(y.dense(), expected)
    inputs = [x.features, down.weight, up.weight]
    for ours, theirs in zip(
        torch.autograd.grad(y.dense().square().sum(), inputs, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), inputs),
    ):
        torch.testing.assert_close(ours, theirs)


def test_inverse_refuses_strangers():
    x = make()
    with pytest.raises(ValueError, match=r"'nobody'.*none"):
        SparseInverseConv3d(3, 3, 3, indice_key='nobody').double()(x)
    y = SparseConv3d(3, 3, 3, 2, 1, indice_key='down').double()(x)
    with pytest.raises(ValueError, match='kernel'):
        SparseInverseConv3d(3, 3, 2, indice_key='down').double()(y)
    with pytest.raises(ValueError, match='did not produce'):
        SparseInverseConv3d(3, 3, 3, indice_key='down').double()(x)


def test_pooling():
    x = make(density=0.2, grad=True)
    y = SparseMaxPool3d(3, 2, 1)(x)
    filled = torch.where(active(x) > 0, x.dense(), -torch.inf)
    expected = F.max_pool3d(filled, 3, 2, 1)
    expected = torch.where(expected.isinf(), 0, expected)
    torch.testing.assert_close(y.dense(), expected)
    (ours,) = torch.autograd.grad(y.dense().square().sum(), x.features, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x.features)
    torch.testing.assert_close(ours, theirs)

    y = SparseAvgPool3d(2)(x)
    count = F.avg_pool3d(active(x), 2)
    expected = torch.where(count > 0, F.avg_pool3d(x.dense(), 2) / count.clamp(min=1e-9), 0)
    torch.testing.assert_close(y.dense(), expected)
    (ours,) = torch.autograd.grad(y.dense().square().sum(), x.features, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.square().sum(), x.features)
    torch.testing.assert_close(ours, theirs)


def test_neighbours_are_cached_by_key():
    x = make()
    first, second = (SubMConv3d(3, 3, 3, indice_key='a').double() for _ in range(2))
    y = first(x)
    pairs = x.find_indice_pair('a')
    second(y)
    assert y.find_indice_pair('a') is pairs and set(x.indice_dict) == {'a'}
    with pytest.raises(ValueError, match="'a' is in use"):
        SubMConv3d(3, 3, 5, indice_key='a').double()(x)
    down = SparseConv3d(3, 3, 3, 2, 1).double()(x)
    with pytest.raises(ValueError, match="'a' belongs to other voxels"):
        first(down)


def test_dense_orders_and_gradient():
    x = make(grad=True)
    volume = x.dense()
    assert volume.shape == (2, 3, *SHAPE) and volume.is_contiguous(memory_format=torch.channels_last_3d)
    b, i, j, k = x.coords[5].tolist()
    assert torch.equal(volume[b, :, i, j, k], x.features[5])
    turned = x.dense('zyx')
    assert turned.is_contiguous(memory_format=torch.channels_last_3d) and torch.equal(
        turned, volume.permute(0, 1, 4, 3, 2)
    )
    weight = torch.randn_like(volume)
    (volume * weight).sum().backward()
    b, i, j, k = x.coords.long().unbind(1)
    assert torch.equal(x.features.grad, weight[b, :, i, j, k])
    with pytest.raises(ValueError, match='order'):
        x.dense('yxz')


def network():
    torch.manual_seed(0)
    return SparseSequential(
        SubMConv3d(3, 8, 3, indice_key='s'),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        SparseSequential(SparseConv3d(8, 8, 3, 2, 1, indice_key='d'), nn.BatchNorm1d(8), nn.ReLU()),
        SparseMaxPool3d(2, 1),
        SubMConv3d(8, 4, 1, bias=False),
    )


@pytest.mark.parametrize('kept', [[], [0], [2], [0, 2]])
def test_empty_samples(kept):
    net, whole = network().eval(), make(batch=3, dtype=torch.float32)
    rows = torch.tensor([c[0].item() in kept for c in whole.coords], dtype=torch.bool)
    x = SparseTensor(whole.features[rows].clone().requires_grad_(), whole.coords[rows], SHAPE, 3)
    volume = net(x).dense()
    expected = net(whole).dense()
    for sample in range(3):
        wanted = expected[sample] if sample in kept else torch.zeros_like(expected[sample])
        torch.testing.assert_close(volume[sample], wanted)
    volume.sum().backward()
    assert x.features.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net, x = network().train(), make(dtype=torch.float32, grad=True)
    expected = net(x).dense()
    with torch.autocast('cpu', dtype):
        volume = net(x).dense()
    torch.testing.assert_close(volume.float(), expected, rtol=0.05, atol=0.05)
    volume.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*net.parameters(), x.features])


@pytest.mark.parametrize('voxels', [0, 1])
def test_training_with_hardly_a_voxel(voxels):
    net = network().train()
    x = SparseTensor(torch.randn(voxels, 3), torch.zeros(voxels, 4, dtype=torch.int32), SHAPE, 2)
    before = copy.deepcopy(net.state_dict())
    net(x).dense().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if voxels == 0:
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_no_sample_at_all():
    x = SparseTensor(torch.randn(0, 3), torch.zeros(0, 4, dtype=torch.int32), SHAPE, 0)
    assert network().eval()(x).dense().shape[:2] == (0, 4)


@pytest.mark.parametrize('shuffle', [True, False])
def test_order_of_voxels_does_not_matter(shuffle):
    x = make(shuffle=shuffle, dtype=torch.float32)
    order = torch.randperm(len(x.coords))
    other = SparseTensor(x.features[order], x.coords[order], SHAPE, 2)
    net = network().eval()
    assert torch.equal(net(x).dense(), net(other).dense())


def test_bad_tensors_are_refused():
    features, coords = torch.randn(3, 2), torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2], [0, 1, 1, 1]]).int()
    with pytest.raises(ValueError, match=r'1 rows repeat a voxel.*\(0, 1, 1, 1\)'):
        SparseTensor(features, coords, SHAPE, 1)
    for column, value, name in ((0, 1, 'batch'), (1, 7, 'x'), (2, -1, 'y'), (3, 9, 'z')):
        wrong = coords.clone()[:2]
        wrong[0, column] = value
        with pytest.raises(ValueError, match=f'coords: {name} runs'):
            SparseTensor(features[:2], wrong, SHAPE, 1)
    with pytest.raises(ValueError, match='one row for each'):
        SparseTensor(features, coords[:2], SHAPE, 1)
    with pytest.raises(TypeError, match='int32'):
        SparseTensor(features, coords.float(), SHAPE, 1)
    with pytest.raises(ValueError, match='features'):
        SparseTensor(features.int(), coords, SHAPE, 1)
    with pytest.raises(ValueError, match='spatial_shape'):
        SparseTensor(features, coords, (1, 2), 1)
    with pytest.raises(ValueError, match='cannot be numbered'):
        SparseTensor(features, coords, (2**31, 2**31, 4), 1)
    with pytest.raises(ValueError, match='rows'):
        SparseTensor(features[:2], coords[:2], SHAPE, 1).replace_feature(features)
    for wrong in (dict(groups=2), dict(stride=2), dict(dilation=0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SubMConv3d(2, 2, 3, **wrong)
    with pytest.raises(ValueError, match='no output voxel'):
        SparseConv3d(2, 2, 9)(SparseTensor(features[:2], coords[:2], SHAPE, 1))


def test_int64_coords_and_noncontiguous_input():
    x = make(dtype=torch.float32)
    wide = torch.empty(len(x.coords), 8, dtype=torch.int64)
    wide[:, ::2] = x.coords
    features = x.features.t().contiguous().t()
    assert not features.is_contiguous()
    other = SparseTensor(features, wide[:, ::2], SHAPE, 2)
    net = network().eval()
    assert torch.equal(net(x).dense(), net(other).dense())


# ---- kernel layouts -----------------------------------------------------------------------------------------------


def official_layout(state):
    return {k: v.permute(1, 2, 3, 4, 0).contiguous() if v.dim() == 5 else v for k, v in state.items()}


def two_layers(channels=(5, 4), kernel=3):
    return nn.Sequential(
        SubMConv3d(channels[0], channels[1], kernel, bias=False), SubMConv3d(channels[1], channels[1], 1, bias=False)
    )


@pytest.mark.parametrize('metadata', [True, False])
@pytest.mark.parametrize('channels', [(5, 4), (4, 4), (3, 1), (1, 3), (3, 4), (4, 3)])
def test_official_kernels_are_permuted_once(channels, metadata):
    source, target = two_layers(channels), two_layers(channels)
    ours = source.state_dict()
    stored = OrderedDict(official_layout(ours))
    if metadata:  # as mmdet3d's hook and mmengine leave it for old files
        stored._metadata = OrderedDict((k, {'version': 1}) for k in ('', '0', '1'))
    frozen = {k: v.clone() for k, v in stored.items()}
    for _ in range(2):
        target.load_state_dict(stored)
        assert all(torch.equal(v, ours[k]) for k, v in target.state_dict().items())
    assert all(torch.equal(v, frozen[k]) for k, v in stored.items())
    plain = dict(target.state_dict())  # an EMA file or a converter drops the metadata
    target.load_state_dict(plain)
    assert all(torch.equal(v, ours[k]) for k, v in target.state_dict().items())


def test_ambiguous_kernels_go_by_the_other_evidence():
    def build():
        return SparseSequential(SubMConv3d(3, 3, 3, bias=False), SubMConv3d(3, 8, 3, bias=False))

    source, target = build(), build()
    ours = source.state_dict()
    target.load_state_dict(ours)
    assert torch.equal(target[0].weight, source[0].weight)
    target.load_state_dict(dict(ours))
    assert torch.equal(target[0].weight, source[0].weight)
    target.load_state_dict(official_layout(ours))
    assert torch.equal(target[0].weight, source[0].weight)
    target.load_state_dict(dict(ours))
    assert torch.equal(target[0].weight, source[0].weight)


@pytest.mark.parametrize(
    'shape, expected, layout',
    [
        ((16, 3, 3, 3, 5), (16, 3, 3, 3, 5), 'out_first'),
        ((3, 3, 3, 5, 16), (16, 3, 3, 3, 5), 'out_last'),
        ((3, 3, 3, 16, 5), (16, 3, 3, 3, 5), 'unknown'),
        ((1, 1, 1, 5, 16), (16, 1, 1, 1, 5), 'out_last'),
        ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), 'out_first'),
        ((3, 3, 3, 3, 3), (3, 3, 3, 3, 3), 'either'),
        ((3, 3, 3, 3, 8), (8, 3, 3, 3, 3), 'out_last'),
        ((3, 3, 3, 3, 8), (3, 3, 3, 3, 8), 'out_first'),
    ],
)
def test_kernel_layout_by_shape(shape, expected, layout):
    assert kernel_layout(shape, expected) == layout


def test_foreign_shapes_still_fail():
    target = two_layers()
    stored = official_layout(target.state_dict())
    stored['0.weight'] = stored['0.weight'][..., :2]
    with pytest.raises(RuntimeError, match=r'size mismatch for 0\.weight'):
        target.load_state_dict(stored)
