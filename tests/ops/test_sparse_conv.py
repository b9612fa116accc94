"""Sparse convolution operators: hand numbers, references, gradients, opcheck, degenerate and corrupt input, threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import sparse_conv as ops
from occforge.ops._backend import extension_devices, has_extension
from op_testing import check_fake

SUBM = ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
DOWN = ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))

compiled = pytest.mark.skipif(not has_extension(), reason='the compiled operators are not built')


def voxels(shape, density=0.3, batch=2, seed=0, shuffle=True):
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *shape, generator=generator) < density).nonzero().int()
    return coords[torch.randperm(len(coords), generator=generator)] if shuffle else coords


def random_case(seed):
    """Voxels of a random grid and a random geometry."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, [9, 40, 140]))
    kernel, stride = (tuple(int(n) for n in rng.integers(1, high, 3)) for high in (5, 4))
    dilation, padding = tuple(int(n) for n in rng.integers(1, 3, 3)), tuple(int(n) for n in rng.integers(0, 3, 3))
    transposed = bool(rng.integers(2))
    coords = voxels(shape, float(rng.choice([0.0, 0.005, 0.05])), int(rng.integers(1, 4)), seed, bool(rng.integers(2)))
    geometry = kernel, stride, padding, dilation
    try:
        out_shape = ops.output_shape(shape, *geometry, transposed)
    except ValueError:
        return random_case(seed + 1000)
    return coords, shape, out_shape, geometry, transposed


# ---- numbers worked out by hand ------------------------------------------------------------------------------------


def test_hand_numbers():
    # a row of voxels z = 0, 1, 3 with values 1, 2, 4, kernel (10, 20, 30) along z
    coords = torch.tensor([[0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32)
    x = torch.tensor([[4.0], [1.0], [2.0]])
    weight = torch.tensor([10.0, 20, 30]).view(1, 3, 1)
    kernel = (1, 1, 3), (1, 1, 1), (0, 0, 1), (1, 1, 1)
    index = ops.neighbour_map(coords, coords, (1, 1, 4), *kernel)
    assert index.tolist() == [[-1, -1, 1], [0, 1, 2], [-1, 2, -1]]
    # z=3: 20*4; z=0: 20*1 + 30*2; z=1: 10*1 + 20*2
    assert ops.sparse_conv(x, weight, index).flatten().tolist() == [80, 80, 50]
    assert ops.transpose_map(index, 3).tolist() == [[-1, 2, -1], [0, 1, 2], [-1, -1, 1]]
    assert ops.sparse_sum_pool(x, index).flatten().tolist() == [4, 3, 3]
    assert ops.sparse_max_pool(-x, index).flatten().tolist() == [-4, -1, -1]
    # stride 2, padding 1: output 0 sees z = -1, 0, 1 and output 1 sees z = 1, 2, 3
    down = (1, 1, 3), (1, 1, 2), (0, 0, 1), (1, 1, 1)
    assert ops.output_shape((1, 1, 4), *down) == (1, 1, 2)
    sites = ops.sparse_sites(coords, (1, 1, 2), *down)
    assert sites.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    index = ops.neighbour_map(coords, sites, (1, 1, 4), *down)
    assert index.tolist() == [[-1, 2], [1, -1], [2, 0]]
    assert ops.sparse_conv(x, weight, index).flatten().tolist() == [20 + 60, 20 + 120]
    # transposed, stride 2, no padding: z = 1 reaches 2, 3, 4 (of 9)
    up = (1, 1, 3), (1, 1, 2), (0, 0, 0), (1, 1, 1)
    assert ops.output_shape((1, 1, 4), *up, transposed=True) == (1, 1, 9)
    sites = ops.sparse_sites(coords[2:], (1, 1, 9), *up, transposed=True)
    assert sites[:, 3].tolist() == [2, 3, 4]
    index = ops.neighbour_map(coords[2:], sites, (1, 1, 4), *up, transposed=True)
    assert ops.sparse_conv(x[2:], weight, index).flatten().tolist() == [20, 40, 60]


# ---- against the references ----------------------------------------------------------------------------------------


@compiled
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31), channels=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_equals_reference(seed, channels):
    coords, shape, out_shape, geometry, transposed = random_case(seed)
    sites = ops.sparse_sites(coords, out_shape, *geometry, transposed)
    assert torch.equal(sites, ops.sparse_sites_reference(coords, out_shape, *geometry, transposed))
    index = ops.neighbour_map(coords, sites, shape, *geometry, transposed)
    assert torch.equal(index, ops.neighbour_map_reference(coords, sites, shape, *geometry, transposed))
    assert (index >= 0).any(0).all()
    index_t = ops.transpose_map(index, len(coords))
    assert torch.equal(index_t, ops.transpose_map_reference(index, len(coords)))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(coords), channels[0], generator=generator, requires_grad=True)
    w = torch.randn(channels[1], len(index), channels[0], generator=generator, requires_grad=True)
    exact = [value.detach().double().requires_grad_() for value in (x, w)]
    out, wanted = ops.sparse_conv(x, w, index, index_t), ops.sparse_conv_reference(*exact, index)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)
    upstream = torch.randn(out.shape, generator=generator)
    found = torch.autograd.grad(out, (x, w), upstream)
    for a, b in zip(found, torch.autograd.grad(wanted, exact, upstream.double())):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)
    best, winner = ops.sparse_max_pool_reference(x.detach(), index)
    found = torch.ops.occforge.sparse_max_pool(x.detach(), index)
    assert torch.equal(found[0], best) and torch.equal(found[1], winner)
    check_fake('sparse_sites', coords, out_shape, *geometry, transposed)
    check_fake('sparse_map', coords, sites, shape, *geometry, transposed)
    check_fake('sparse_conv', x.detach(), w.detach(), index, index_t)
    check_fake('sparse_max_pool', x.detach(), index, index_t)


@compiled
@pytest.mark.parametrize('channels', [(1, 1), (5, 16), (16, 16), (32, 48), (33, 7), (70, 100)])
@pytest.mark.parametrize('geometry', [SUBM, DOWN], ids=['subm', 'down'])
def test_convolution_equals_reference(channels, geometry):
    shape = (20, 21, 12)
    coords = voxels(shape)
    sites = coords if geometry is SUBM else ops.sparse_sites(coords, ops.output_shape(shape, *geometry), *geometry)
    index = ops.neighbour_map(coords, sites, shape, *geometry)
    x, w = torch.randn(len(coords), channels[0]).double(), torch.randn(channels[1], 27, channels[0]).double()
    g = torch.randn(len(sites), channels[1]).double()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.half, 1e-3)):
        inputs = [v.to(dtype).requires_grad_() for v in (x, w)]
        exact = [v.detach().double().requires_grad_() for v in inputs]
        out, expected = ops.sparse_conv(*inputs, index), ops.sparse_conv_reference(*exact, index)
        results = [out, *torch.autograd.grad(out, inputs, g.to(dtype))]
        wanted = [expected, *torch.autograd.grad(expected, exact, g.to(dtype).double())]
        for result, value in zip(results, wanted):
            assert result.dtype == dtype
            error = (result.double() - value).abs().max() / value.abs().max()
            assert error <= tolerance, f'{dtype}: {error}'


@compiled
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_pools_equal_reference(dtype):
    shape = (9, 10, 11)
    coords = voxels(shape, 0.1)
    sites = ops.sparse_sites(coords, ops.output_shape(shape, *DOWN), *DOWN)
    index = ops.neighbour_map(coords, sites, shape, *DOWN)
    # distinct values (exact in bfloat16), so that there is one winner
    x = torch.randperm(len(coords))[:, None].mul(torch.tensor([1, -1])).div(256).to(dtype)
    for function, reference in (
        (ops.sparse_sum_pool, ops.sparse_sum_pool_reference),
        (ops.sparse_max_pool, lambda x, index: ops.sparse_max_pool_reference(x, index)[0]),
    ):
        ours, theirs = x.clone().requires_grad_(), x.clone().double().requires_grad_()
        out, expected = function(ours, index), reference(theirs, index)
        torch.testing.assert_close(out, expected.to(dtype))
        grad = torch.randint(-4, 4, out.shape).to(dtype)
        torch.testing.assert_close(
            torch.autograd.grad(out, ours, grad)[0], torch.autograd.grad(expected, theirs, grad.double())[0].to(dtype)
        )


def small_case(seed=0):
    coords = voxels((4, 3, 4), [0.4, 0.1, 0.9][seed % 3], seed=seed)
    index = ops.neighbour_map(coords, coords, (4, 3, 4), *SUBM)
    x = torch.randn(len(coords), 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 27, 3, dtype=torch.float64, requires_grad=True)
    return coords, index, ops.transpose_map(index, len(coords)), x, w


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    coords = voxels((3, 2, 4), [0.4, 0.2, 0.8][seed % 3], batch=1, seed=seed)
    geometry = [SUBM, DOWN, ((2, 1, 3), (1, 1, 2), (0, 0, 1), (1, 1, 1))][seed % 3]
    sites = coords if geometry is SUBM else ops.sparse_sites(coords, ops.output_shape((3, 2, 4), *geometry), *geometry)
    index = ops.neighbour_map(coords, sites, (3, 2, 4), *geometry)
    index_t = ops.transpose_map(index, len(coords)) if seed % 2 else None
    x = torch.randn(len(coords), 1 + seed % 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1 + seed % 2, len(index), 1 + seed % 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: ops.sparse_conv(x, w, index, index_t), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: ops.sparse_conv(x, w, index, index_t), (x, w))
    assert torch.autograd.gradcheck(lambda x: ops.sparse_sum_pool(x, index, index_t), (x,))
    assert torch.autograd.gradcheck(lambda x: ops.sparse_max_pool(x, index, index_t), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.sparse_max_pool(x, index, index_t) ** 2, (x,))


def test_grads_are_not_none():
    _, index, _, x, w = small_case()
    (ops.sparse_conv(x, w, index).sum() + ops.sparse_sum_pool(x, index).sum()).backward()
    assert x.grad is not None and w.grad is not None
    x.grad = None
    ops.sparse_max_pool(x, index).sum().backward()
    assert x.grad is not None


@compiled
@pytest.mark.filterwarnings('ignore')
def test_opcheck():
    coords, index, index_t, x, w = small_case()
    o = torch.ops.occforge
    check = torch.library.opcheck
    geometry = [list(v) for v in DOWN]
    check(o.sparse_sites.default, (coords, [2, 2, 2], *geometry, False))
    check(o.sparse_map.default, (coords, coords, [4, 3, 4], *[list(v) for v in SUBM], False))
    check(o.sparse_transpose_map.default, (index, len(coords)))
    for reverse in (None, index_t):
        check(o.sparse_conv.default, (x, w, index, reverse))
        check(o.sparse_conv.default, (x.detach().float(), w.detach().float().requires_grad_(), index, reverse))
        check(o.sparse_conv_weight.default, (x, torch.randn(len(coords), 2).double(), index, reverse))
        check(o.sparse_sum_pool.default, (x, index, reverse))
        check(o.sparse_max_pool.default, (x, index, reverse))
    winner = o.sparse_max_pool(x, index)[1]
    check(o.sparse_max_pool_backward.default, (x.detach(), winner, index_t))


@compiled
def test_autocast_computes_in_float32():
    _, index, _, x, w = small_case()
    x, w = x.detach().float(), w.detach().float()
    with torch.autocast('cpu', torch.bfloat16):
        out = ops.sparse_conv(x.bfloat16(), w, index)
        assert ops.sparse_sum_pool(x.bfloat16(), index).dtype == torch.float32
    assert torch.equal(out, ops.sparse_conv(x.bfloat16().float(), w, index))


def test_the_reference_computes_in_float32_under_autocast():
    _, index, _, x, w = small_case()
    x, w = x.detach().float(), w.detach().float()
    with torch.autocast('cpu', torch.bfloat16):
        out = ops.sparse_conv_reference(x, w, index)
    assert torch.equal(out, ops.sparse_conv_reference(x, w, index))


@compiled
def test_compile_fullgraph():
    _, index, index_t, x, w = small_case()

    def function(x, w):
        return ops.sparse_max_pool(ops.sparse_conv(x, w, index, index_t).relu(), index, index_t)

    traced = torch.compile(function, fullgraph=True, backend='aot_eager')
    ours, theirs = traced(x, w), function(x, w)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.sum(), (x, w)), torch.autograd.grad(theirs.sum(), (x, w))):
        torch.testing.assert_close(a, b)


@pytest.mark.cuda
@pytest.mark.skipif(
    'cuda' not in extension_devices() or not torch.cuda.is_available(), reason='no GPU, or operators built without it'
)
@pytest.mark.parametrize('seed', range(10))
def test_cuda_equals_cpu(seed):
    coords, shape, out_shape, geometry, transposed = random_case(seed)
    sites = ops.sparse_sites(coords, out_shape, *geometry, transposed)
    index = ops.neighbour_map(coords, sites, shape, *geometry, transposed)
    on_gpu = ops.sparse_sites(coords.cuda(), out_shape, *geometry, transposed)
    assert torch.equal(on_gpu.cpu(), sites)
    index_gpu = ops.neighbour_map(coords.cuda(), on_gpu, shape, *geometry, transposed)
    assert torch.equal(index_gpu.cpu(), index)
    x, w = torch.randn(len(coords), 37), torch.randn(70, len(index), 37)
    results = []
    for device, map_ in (('cpu', index), ('cuda', index_gpu)):
        inputs = [v.to(device, torch.float64).requires_grad_() for v in (x, w)]
        outs = [
            ops.sparse_conv(*inputs, map_),
            ops.sparse_sum_pool(inputs[0], map_),
            ops.sparse_max_pool(inputs[0], map_),
        ]
        results.append([*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), inputs)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(theirs.cpu(), ours)
    with pytest.raises(ValueError, match='repeats'):
        twice = torch.zeros(2, 4, dtype=torch.int32, device='cuda')
        ops.neighbour_map(twice, twice, shape, *geometry, transposed)


# ---- degenerate, strided in memory, corrupt ------------------------------------------------------------------------


@pytest.mark.parametrize('count', [0, 1])
def test_no_voxel_and_one_voxel(count):
    coords = torch.tensor([[1, 2, 1, 0]], dtype=torch.int32)[:count]
    sites = ops.sparse_sites(coords, (2, 2, 2), *DOWN)
    assert sites.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]][: 2 * count]
    index = ops.neighbour_map(coords, sites, (4, 3, 4), *DOWN)
    assert index.shape == (27, 2 * count)
    x, w = torch.randn(count, 3, requires_grad=True), torch.randn(5, 27, 3, requires_grad=True)
    for out in (
        ops.sparse_conv(x, w, index),
        ops.sparse_sum_pool(x, index),
        ops.sparse_max_pool(x, index),
    ):
        assert len(out) == 2 * count and out.isfinite().all()
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.shape == x.shape
    (grad,) = torch.autograd.grad(ops.sparse_conv(x, w, index).sum(), w)
    assert grad.shape == w.shape and bool(grad.any()) == (count > 0)


def test_no_channels():
    _, index, _, _, _ = small_case()
    n = index.shape[1]
    assert ops.sparse_conv(torch.randn(n, 0), torch.randn(4, 27, 0), index).tolist() == [[0.0] * 4] * n
    assert ops.sparse_conv(torch.randn(n, 2), torch.randn(0, 27, 2), index).shape == (n, 0)


def test_non_contiguous_input():
    coords, index, index_t, x, w = small_case()
    x, w = x.detach(), w.detach()
    strided = torch.randn(len(x), 8).double()
    strided[:, 1:7:2] = x
    kernel = w.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    maps = [v.t().contiguous().t() for v in (index, index_t)]
    assert not kernel.is_contiguous() and not maps[0].is_contiguous()
    a, b = strided[:, 1:7:2].requires_grad_(), kernel.requires_grad_()
    c, d = x.requires_grad_(), w.requires_grad_()
    ours, theirs = ops.sparse_conv(a, b, *maps), ops.sparse_conv(c, d, index, index_t)
    assert torch.equal(ours, theirs)
    # an expanded gradient has strides of zero
    for p, q in zip(torch.autograd.grad(ours.sum(), (a, b)), torch.autograd.grad(theirs.sum(), (c, d))):
        torch.testing.assert_close(p, q)
    wide = torch.zeros(len(coords), 8, dtype=torch.int32)
    wide[:, ::2] = coords
    assert torch.equal(ops.neighbour_map(wide[:, ::2], wide[:, ::2], (4, 3, 4), *SUBM), index)


@compiled
def test_bad_coords_are_refused():
    coords = torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2], [0, 1, 1, 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r'\(0, 1, 1, 1\) is named by rows 0 and 2'):
        ops.neighbour_map(coords, coords, (4, 4, 4), *SUBM)
    with pytest.raises(ValueError, match='outside the grid of 2 x 4 x 4'):
        ops.neighbour_map(coords[:2], coords[:2], (2, 4, 4), *SUBM)
    with pytest.raises(ValueError, match='too many voxels'):
        ops.neighbour_map(coords[:2], coords[:2], (2**31 - 1, 2**31 - 1, 4), *SUBM)
    for wrong in (coords[0], coords[:, :3], coords.long(), coords.float()):
        with pytest.raises((ValueError, TypeError), match='coords must'):
            ops.neighbour_map(wrong, coords, (4, 4, 4), *SUBM)
    with pytest.raises(ValueError, match='stride'):
        ops.sparse_sites(coords, (2, 2, 2), (3, 3, 3), (0, 1, 1), (1, 1, 1), (1, 1, 1))
    # output voxels anywhere find nothing, and nothing is read out of bounds
    wild = torch.randint(-(2**31), 2**31 - 1, (200, 4)).int()
    assert (ops.neighbour_map(coords[:2], wild, (4, 4, 4), *SUBM) == -1).all()


@compiled
def test_corrupt_maps_are_refused():
    _, index, index_t, x, w = small_case()
    x, w = x.detach(), w.detach()
    rng = np.random.default_rng(0)
    for _ in range(1000):
        wrong = index.clone()
        value = int(rng.choice([-(2**31), -2, len(x), len(x) + 1, 2**31 - 1]))
        wrong[int(rng.integers(27)), int(rng.integers(len(x)))] = value
        calls = [
            lambda m: ops.sparse_conv(x, w, m),
            lambda m: torch.ops.occforge.sparse_conv_weight(x, x, m),
            lambda m: ops.sparse_sum_pool(x, m),
            lambda m: ops.sparse_max_pool(x, m),
            lambda m: ops.transpose_map(m, len(x)),
            lambda m: torch.ops.occforge.sparse_max_pool_backward(x, torch.zeros(x.shape, dtype=torch.int32), m),
        ]
        with pytest.raises(ValueError, match='expected -1 or a row below'):
            calls[int(rng.integers(len(calls)))](wrong)
    for wrong in (index.long(), index[0], index[None], index.float()):
        with pytest.raises((ValueError, TypeError), match='index must'):
            ops.sparse_conv(x, w, wrong)
    for wrong in (w[:, :5], w[..., :2], w[0]):
        with pytest.raises(ValueError, match='weight'):
            ops.sparse_conv(x, wrong, index)
    with pytest.raises(ValueError, match='index_t'):
        ops.sparse_conv(x, w, index, index_t[:, 1:])
    with pytest.raises(TypeError, match='weight must be of the dtype of features'):
        ops.sparse_conv(x, w.float(), index)
    with pytest.raises(ValueError, match='weight must be'):
        torch.ops.occforge.sparse_conv(x, w.float(), index)


# ---- threads -------------------------------------------------------------------------------------------------------


@compiled
def test_equal_at_every_number_of_threads():
    shape = (60, 60, 16)
    coords = voxels(shape, 0.1, seed=3)
    x, w = torch.randn(len(coords), 32, requires_grad=True), torch.randn(48, 27, 32, requires_grad=True)

    def run():
        sites = ops.sparse_sites(coords, ops.output_shape(shape, *DOWN), *DOWN)
        index = ops.neighbour_map(coords, sites, shape, *DOWN)
        out = ops.sparse_conv(x, w, index)
        pools = ops.sparse_sum_pool(x, index), ops.sparse_max_pool(x, index)
        grad = torch.linspace(-1, 1, out.numel()).view_as(out)
        return [sites, index, out, *pools, *torch.autograd.grad(out, (x, w), grad)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for threads in (2, 2, 3, 2):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(run(), expected))
    finally:
        torch.set_num_threads(before)


@compiled
def test_many_calls_at_two_threads_stay_right():
    # the case that spconv's CPU code gets wrong: one 3x3x3 submanifold layer, 2,000 voxels, again and again
    coords = voxels((40, 40, 10), 0.0625, batch=2)[:2000]
    index = ops.neighbour_map(coords, coords, (40, 40, 10), *SUBM)
    x, w = torch.randn(len(coords), 16), torch.randn(16, 27, 16)
    expected = ops.sparse_conv_reference(x.double(), w.double(), index)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(50):
            torch.testing.assert_close(ops.sparse_conv(x, w, index).double(), expected, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize('capability', ['avx2', 'default'])
def test_narrower_instruction_sets(capability):
    test = f'{__file__}::test_convolution_equals_reference'
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', test, f'{__file__}::test_hand_numbers']
    environment = {**os.environ, 'ATEN_CPU_CAPABILITY': capability}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=os.path.dirname(__file__))
    assert result.returncode == 0, result.stdout[-2000:]


def test_runs_without_the_extension():
    code = (
        'import torch\n'
        'from occforge.ops import sparse_conv as ops\n'
        'c = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]).int()\n'
        'm = ops.neighbour_map(c, c, (1, 1, 2), (1, 1, 3), (1, 1, 1), (0, 0, 1), (1, 1, 1))\n'
        'x = torch.tensor([[1.0], [2.0]], requires_grad=True)\n'
        'y = ops.sparse_conv(x, torch.tensor([1.0, 10, 100]).view(1, 3, 1), m)\n'
        'y.sum().backward()\n'
        'assert not hasattr(torch.ops.occforge, "sparse_conv")\n'
        'print(y.flatten().tolist(), x.grad.flatten().tolist())\n'
    )
    environment = {**os.environ, 'OCCFORGE_DISABLE_EXT': '1'}
    result = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split('\n')[0] == '[210.0, 21.0] [11.0, 110.0]'
