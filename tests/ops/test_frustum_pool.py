import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import FrustumIndexCache, FrustumIndices, frustum_indices, frustum_pool
from occforge.ops.frustum_pool import frustum_indices_reference, frustum_pool_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

LOWER, INTERVAL = [-2.0, -1.0, 0.0], [1.0, 0.5, 2.0]


def case(shape, channels, size, seed=0, dtype=torch.float32, spread=2.0):
    """Random points in and around the grid, weights and features."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor(LOWER) + torch.tensor(size) * torch.tensor(INTERVAL) / 2
    extent = torch.tensor(size) * torch.tensor(INTERVAL)
    points = centre + (torch.rand(*shape, 3, generator=generator) - 0.5) * extent * spread
    depth = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    batch, cameras, _, height, width = shape
    feat = torch.randn(batch, cameras, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
    return points, depth.requires_grad_(), feat.requires_grad_()


def test_hand_numbers():
    # One camera, one pixel row of 2, three depths; 2 x 1 x 2 cells of 1 m from the origin.
    points = torch.tensor(
        [
            [[0.5, 0.5, 0.5], [1.5, 0.5, 0.5]],  # depth 0: cells (x, z) = (0, 0) and (1, 0)
            [[0.2, 0.9, 0.1], [1.0, 0.0, 1.0]],  # depth 1: (0, 0) again and (1, 1), on the lower faces
            [[-0.5, 0.5, 0.5], [2.0, 0.5, 0.5]],  # depth 2: truncated into (0, 0); outside
        ]
    ).view(1, 1, 3, 1, 2, 3)
    indices = frustum_indices(points, [0, 0, 0], [1, 1, 1], [2, 1, 2])
    assert indices.voxel.flatten().tolist() == [0, 1, 0, 3, 0, -1]
    assert indices.point.tolist() == [0, 2, 4, 1, 3, 5]
    assert indices.offset.tolist() == [0, 3, 4, 4, 5]

    depth = torch.tensor([[0.5, 0.25], [0.25, 0.5], [0.125, 0.25]]).view(1, 1, 3, 1, 2).requires_grad_()
    feat = torch.tensor([[8.0, 4.0], [16.0, -4.0]]).view(1, 1, 2, 1, 2).requires_grad_()  # two channels
    out = frustum_pool(depth, feat, indices, [2, 1, 2])
    # cell 0: (0.5 + 0.25 + 0.125) x (8, 16) = (7, 14); cell 1: 0.25 x (4, -4); cell 3: 0.5 x (4, -4)
    assert out.shape == (1, 2, 2, 1, 2)
    assert out.flatten().tolist() == [7, 1, 0, 2, 14, -1, 0, -2]
    out.backward(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).view_as(out))
    # depth gradients: <(1, 5), (8, 16)> = 88 in cell 0, <(2, 6), (4, -4)> = -16, <(4, 8), (4, -4)> = -16, 0 outside
    assert depth.grad.flatten().tolist() == [88, -16, 88, -16, 88, 0]
    # features: pixel 0: 0.875 x (1, 5); pixel 1: 0.25 x (2, 6) + 0.5 x (4, 8)
    assert feat.grad.flatten().tolist() == [0.875, 2.5, 4.375, 5.5]


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), *(st.integers(1, n) for n in (3, 6, 4, 5))),
    channels=st.integers(0, 70),
    size=st.tuples(*(st.integers(1, 7) for _ in range(3))),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 2.0, 1e6]),
)
def test_equals_reference(shape, channels, size, seed, spread):
    points, depth, feat = case(shape, channels, size, seed, spread=spread)
    points.flatten()[: 3 * (seed % 3)] = [float('nan'), float('inf'), -float('inf')][seed % 3]
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    expected = frustum_indices_reference(points, LOWER, INTERVAL, size)
    assert all(torch.equal(a, b) for a, b in zip(indices, expected))
    out = frustum_pool(depth, feat, indices, size)
    wanted = frustum_pool_reference(depth, feat, *indices, size)
    assert out.shape == (shape[0], channels, *size[::-1])
    check_fake('frustum_indices', points, LOWER, INTERVAL, size)
    check_fake('frustum_pool', depth.detach(), feat.detach(), *indices, size)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(out, (depth, feat), upstream)
    wanted = torch.autograd.grad(wanted, (depth, feat), upstream)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    # nothing is lost and nothing counted twice
    inside = torch.where(indices.voxel >= 0, depth, 0).double()
    total = torch.einsum('bndhw,bnchw->c', inside, feat.double())
    torch.testing.assert_close(out.double().sum((0, 2, 3, 4)), total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    size = (3, 2, 2)
    points, depth, feat = case(
        (1 + seed % 2, 1 + seed % 3, 2, 2, 1 + seed % 4), 1 + 9 * (seed % 2), size, seed, torch.float64
    )
    indices = frustum_indices(points, LOWER, INTERVAL, size)

    def pool(depth, feat):
        return frustum_pool(depth, feat, indices, size)

    assert torch.autograd.gradcheck(pool, (depth, feat))
    assert torch.autograd.gradgradcheck(pool, (depth, feat))


@needs_extension
@pytest.mark.parametrize('seed', range(3))
def test_opcheck(seed):
    size, channels = [3, 2, 2], [5, 8, 0][seed]
    points, depth, feat = case((2 * (seed < 2), 2, 3, 2, 2), channels, size, seed)
    ops = torch.ops.occforge
    torch.library.opcheck(ops.frustum_indices.default, (points, LOWER, INTERVAL, size), test_utils=OPCHECK_TESTS)
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    torch.library.opcheck(ops.frustum_pool.default, (depth, feat, *indices, size), test_utils=OPCHECK_TESTS)
    grad = torch.randn(frustum_pool(depth, feat, indices, size).shape, requires_grad=True)
    arguments = (grad, depth, feat, *indices, size)
    torch.library.opcheck(ops.frustum_pool_backward.default, arguments, test_utils=OPCHECK_TESTS)


def test_empty_single_and_degenerate():
    size = (3, 2, 2)
    for shape in ((1, 1, 1, 1, 1), (0, 1, 2, 2, 2), (2, 0, 2, 2, 2), (1, 1, 2, 0, 2), (1, 2, 0, 2, 2)):
        points, depth, feat = case(shape, 4, size)
        out = frustum_pool(depth, feat, frustum_indices(points, LOWER, INTERVAL, size), size)
        assert out.shape == (shape[0], 4, 2, 2, 3)
        out.sum().backward()
        assert depth.grad.shape == depth.shape and feat.grad.shape == feat.shape
    points, depth, feat = case((2, 2, 3, 2, 2), 4, size)
    indices = frustum_indices(points + 1e3, LOWER, INTERVAL, size)  # all outside
    out = frustum_pool(depth, feat, indices, size)
    assert out.shape == (2, 4, 2, 2, 3) and not out.any()
    out.sum().backward()
    assert not depth.grad.any() and not feat.grad.any()
    indices = frustum_indices(points * 0 - 0.5, LOWER, INTERVAL, size)  # all in one cell
    out = frustum_pool(depth, feat, indices, size)
    torch.testing.assert_close(out.sum((2, 3, 4)), torch.einsum('bndhw,bnchw->bc', depth, feat))
    points, depth, feat = case((1, 1, 1000, 10, 10), 3, size)  # a hundred thousand of them
    out = frustum_pool(depth, feat, frustum_indices(points * 0 - 0.5, LOWER, INTERVAL, size), size)
    torch.testing.assert_close(out.sum((2, 3, 4)), torch.einsum('bndhw,bnchw->bc', depth, feat), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_sums_in_float32(dtype):
    size = (2, 2, 1)
    points, depth, feat = case((1, 3, 20, 4, 4), 40, size, dtype=dtype, spread=1.0)
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    out = frustum_pool(depth, feat, indices, size)
    assert out.dtype == dtype
    exact = frustum_pool_reference(depth.double(), feat.double(), *indices, size)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=rounding, atol=1e-4)
    upstream = torch.randn(out.shape).to(dtype)
    found = torch.autograd.grad(out, (depth, feat), upstream)
    wanted = torch.autograd.grad(exact, (depth, feat), upstream.double())
    for a, b in zip(found, wanted):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=rounding, atol=1e-4, check_dtype=False)


@needs_extension
def test_autocast_computes_in_float32():
    size = (3, 2, 2)
    points, depth, feat = case((1, 2, 3, 2, 2), 4, size)
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    expected = frustum_pool(depth, feat.detach().bfloat16().float(), indices, size)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = frustum_pool(depth, feat.bfloat16(), indices, size)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.sum().backward()
    assert depth.grad is not None and feat.grad is not None


def test_memory_layout_threads_and_repeats():
    size = (6, 5, 4)
    points, depth, feat = case((2, 3, 9, 7, 5), 21, size, seed=1)
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    out = frustum_pool(depth, feat, indices, size)
    upstream = torch.randn(out.shape)
    expected = torch.autograd.grad(out, (depth, feat), upstream)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = frustum_indices(awkward(points), LOWER, INTERVAL, size)
            assert all(torch.equal(a, b) for a, b in zip(again, indices))
            again = FrustumIndices(*(awkward(value) for value in indices))
            for _ in range(7):
                depth_, feat_ = awkward(depth), awkward(feat)
                found = frustum_pool(depth_, feat_, again, size)
                assert torch.equal(found, out)
                found = torch.autograd.grad(found, (depth_, feat_), awkward(upstream))
                assert all(torch.equal(a, b) for a, b in zip(found, expected))
    finally:
        torch.set_num_threads(threads)


def test_indices_are_kept_while_the_points_stay():
    size = (3, 2, 2)
    points, *_ = case((1, 2, 3, 2, 2), 4, size)
    cache = FrustumIndexCache()
    first = cache(points, LOWER, INTERVAL, size)
    assert all(torch.equal(a, b) for a, b in zip(first, frustum_indices(points, LOWER, INTERVAL, size)))
    assert cache(points.clone(), torch.tensor(LOWER), INTERVAL, list(size)) is first
    points[0, 0, 0, 0, 0, 0] += 0.7  # also where the very tensor is changed in place
    again = cache(points, LOWER, INTERVAL, size)
    assert all(torch.equal(a, b) for a, b in zip(again, frustum_indices(points, LOWER, INTERVAL, size)))
    assert again is not first and cache(points, LOWER, INTERVAL, size) is again
    for other in (
        (points, [-1.0, -1.0, 0.0], INTERVAL, size),
        (points, LOWER, INTERVAL, (3, 2, 1)),
        (points.double(), LOWER, INTERVAL, size),
        (points[:, :1], LOWER, INTERVAL, size),
    ):
        assert all(torch.equal(a, b) for a, b in zip(cache(*other), frustum_indices(*other)))
    assert copy.deepcopy(cache)._indices is None and cache._indices is not None


def test_bad_input():
    size = (3, 2, 2)
    points, depth, feat = case((1, 2, 3, 2, 2), 4, size)
    indices = frustum_indices(points, LOWER, INTERVAL, size)
    for message, call in {
        'points must have shape': lambda: frustum_indices(points[0], LOWER, INTERVAL, size),
        'points must be of dtype': lambda: frustum_indices(points.long(), LOWER, INTERVAL, size),
        'interval must be finite and above 0': lambda: frustum_indices(points, LOWER, [1, -1, 1], size),
        'size must be whole numbers above 0': lambda: frustum_indices(points, LOWER, INTERVAL, [1, 0, 1]),
        'must agree in B, N, h and w': lambda: frustum_pool(depth, feat[:, :1], indices, size),
        'depth must have shape': lambda: frustum_pool(depth[0], feat, indices, size),
        'feat must be of dtype': lambda: frustum_pool(depth, feat.long(), indices, size),
        'indices must be the FrustumIndices': lambda: frustum_pool(depth, feat, indices.voxel, size),
        'indices were made for': lambda: frustum_pool(depth[:, :, :2], feat, indices, size),
        'indices.offset must have': lambda: frustum_pool(depth, feat, indices, (3, 2, 3)),
        'indices.point must be of dtype int64': lambda: frustum_pool(
            depth, feat, indices._replace(point=indices.point.int()), size
        ),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(ValueError, match='2\\^20'):
        frustum_indices(points, LOWER, INTERVAL, (2**21, 2**21, 2**21))


@needs_extension
def test_thousand_corrupt_indices_give_errors():
    generator = torch.Generator().manual_seed(0)
    size = (3, 2, 2)
    points, depth, feat = case((2, 2, 3, 2, 3), 9, size)
    good = frustum_indices(points, LOWER, INTERVAL, size)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for _ in range(1000):
        bad = [value.clone() for value in good]
        which, how = draw(3), draw(4)
        values = bad[which].view(-1)
        if how == 0:  # anything at one place, other than what is there
            place = draw(values.numel())
            noise = [-(2**63), -2, -1, 0, 1, 2**31, 2**62, 2**63 - 1, draw(1000)][draw(9)]
            values[place] = noise if noise != values[place] else noise ^ 1
        elif how == 1:  # wrong length or shape
            bad[which] = values[: draw(values.numel())]
        elif how == 2:  # wrong dtype
            bad[which] = bad[which].to([torch.int32, torch.float32, torch.bool][draw(3)])
        else:  # out of order
            shuffled = values[torch.randperm(values.numel(), generator=generator)].view_as(bad[which])
            if torch.equal(shuffled, bad[which]):
                continue
            bad[which] = shuffled
        with pytest.raises((ValueError, TypeError)):
            frustum_pool(depth, feat, FrustumIndices(*bad), size)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            torch.ops.occforge.frustum_pool(depth, feat, *bad, size)


@needs_extension
def test_corrupt_indices_in_backward_alone():
    size = (3, 2, 2)
    points, depth, feat = case((1, 2, 3, 2, 2), 4, size)
    voxel, point, offset = frustum_indices(points, LOWER, INTERVAL, size)
    for value in (-2, 12, 2**62):
        bad = voxel.clone()
        bad[0, 0, 0, 0, 0] = value
        with pytest.raises(ValueError, match='voxel must be in'):
            grad = torch.ones(1, 4, 2, 2, 3)
            torch.ops.occforge.frustum_pool_backward(grad, depth, feat, bad, point, offset, size)


@needs_extension
def test_compile():
    size = (3, 2, 2)
    points, depth, feat = case((1, 2, 3, 2, 2), 4, size)

    def pool(points, depth, feat):
        return frustum_pool(depth, feat, frustum_indices(points, LOWER, INTERVAL, size), size)

    out = torch.compile(pool, fullgraph=True, backend='aot_eager')(points, depth, feat)
    torch.testing.assert_close(out, pool(points, depth, feat), rtol=0, atol=0)
    found = torch.autograd.grad(out.square().sum(), (depth, feat))
    wanted = torch.autograd.grad(pool(points, depth, feat).square().sum(), (depth, feat))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    from occforge.ops import frustum_indices, frustum_pool, has_extension
    points = torch.tensor([[.5, .5, .5], [1.5, .5, .5], [-.5, .5, .5], [9, 9, 9]]).view(1, 1, 2, 1, 2, 3)
    indices = frustum_indices(points, [0, 0, 0], [1, 1, 1], [2, 1, 1])
    feat = torch.tensor([8., 4.]).view(1, 1, 1, 1, 2).requires_grad_()
    out = frustum_pool(torch.full((1, 1, 2, 1, 2), .5), feat, indices, [2, 1, 1])
    out.sum().backward()
print(has_extension(), *out.flatten().tolist(), *feat.grad.flatten().tolist())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['False', '8.0', '2.0', '1.0', '0.5', '1']
