import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import voxelize
from occforge.ops.voxelize import _REDUCE, voxel_assign_reference, voxel_reduce_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

LOWER, VOXEL = [-2.0, -1.0, 0.0], [0.5, 0.25, 1.0]


def cloud(count, columns=5, samples=2, seed=0, dtype=torch.float32, size=(8, 8, 3)):
    """Points in and around the grid, some of them not numbers."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(size) * torch.tensor(VOXEL)
    points = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    points[:, :3] = torch.tensor(LOWER) + (torch.rand(count, 3, generator=generator) * 1.4 - 0.2) * extent
    points[: count // 10, seed % 3] = [float('nan'), float('inf'), -float('inf'), 1e30][seed % 4]
    return points.to(dtype), torch.randint(0, samples, (count,), generator=generator)


def reference(points, batch_index, size, reduce):
    coords, inverse, point, offset = voxel_assign_reference(points.detach(), batch_index, LOWER, VOXEL, size)
    features, _ = voxel_reduce_reference(points, inverse, point, offset, _REDUCE[reduce])
    return features, coords, inverse, offset.diff()


def test_hand_numbers():
    # Cells of 0.5 x 0.25 x 1 m from (-2, -1, 0); 4 x 4 x 1 of them.
    points = torch.tensor(
        [
            [-1.2, -0.6, 0.5, 10.0],  # cell (1, 1, 0)
            [-2.0, -1.0, 0.0, 20.0],  # lower corner: cell (0, 0, 0)
            [-1.1, -0.7, 0.9, 30.0],  # (1, 1, 0)
            [0.0, -0.6, 0.5, 40.0],  # x at the upper bound: outside
            [-1.4, -0.6, float('nan'), 50.0],  # dropped
            [-1.4, -0.6, 0.5, 60.0],  # (1, 1, 0), in sample 1
            [-2.1, -0.6, 0.5, 70.0],  # below: outside, not truncated into cell 0
        ]
    )
    batch_index = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    voxels = voxelize(points, batch_index, LOWER, VOXEL, [4, 4, 1])
    assert voxels.coords.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]
    assert voxels.inverse.tolist() == [1, 0, 1, -1, -1, 2, -1]
    assert voxels.counts.tolist() == [1, 2, 1]
    torch.testing.assert_close(
        voxels.features, torch.tensor([[-2, -1, 0, 20], [-1.15, -0.65, 0.7, 20], [-1.4, -0.6, 0.5, 60]])
    )
    assert voxelize(points, batch_index, LOWER, VOXEL, [4, 4, 1], 'max').features[1].tolist() == pytest.approx(
        [-1.1, -0.6, 0.9, 30]
    )
    assert voxelize(points, None, LOWER, VOXEL, [4, 4, 1], 'sum').features[1, 3].item() == 100.0


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 300),
    columns=st.integers(3, 20),
    size=st.tuples(*(st.integers(1, 12) for _ in range(3))),
    samples=st.sampled_from([None, 1, 3, 40]),
    reduce=st.sampled_from(['mean', 'max', 'sum']),
    seed=st.integers(0, 1000),
)
def test_equals_reference(count, columns, size, samples, reduce, seed):
    points, batch_index = cloud(count, columns, samples or 1, seed, size=size)
    if samples is None:
        batch_index = None
    points.requires_grad_()
    voxels = voxelize(points, batch_index, LOWER, VOXEL, size, reduce)
    expected = reference(points, batch_index, size, reduce)
    for found, wanted in zip(voxels[1:], expected[1:]):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    torch.testing.assert_close(voxels.features, expected[0], rtol=1e-5, atol=1e-6)
    assert voxels.counts.sum() == (voxels.inverse >= 0).sum()
    check_fake('voxel_assign', points.detach(), batch_index, LOWER, VOXEL, size)
    upstream = torch.randn(voxels.features.shape, generator=torch.Generator().manual_seed(seed))
    found, wanted = (torch.autograd.grad(value, points, upstream)[0] for value in (voxels.features, expected[0]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
@pytest.mark.parametrize('seed', range(7))
def test_gradcheck(reduce, seed):
    points, batch_index = cloud(12 + seed, 3 + 3 * (seed % 4), dtype=torch.float64, size=(2, 2, 1))
    points = points[torch.isfinite(points).all(1)]
    batch_index = batch_index[: len(points)]
    points.requires_grad_()

    def run(columns):
        # the cells come from x, y, z; only what the reduction makes of all columns is differentiated
        return voxelize(columns, batch_index, LOWER, VOXEL, (2, 2, 1), reduce).features

    assert torch.autograd.gradcheck(run, points)
    assert torch.autograd.gradgradcheck(run, points)


@needs_extension
@pytest.mark.parametrize('reduce', [0, 1, 2])
def test_opcheck(reduce):
    for count in (0, 1, 40):
        points, batch_index = cloud(count, 6, seed=reduce)
        ops, size = torch.ops.occforge, [8, 8, 3]
        arguments = (points, batch_index, LOWER, VOXEL, size)
        torch.library.opcheck(ops.voxel_assign.default, arguments, test_utils=OPCHECK_TESTS)
        torch.library.opcheck(ops.voxel_assign.default, (points, None, *arguments[2:]), test_utils=OPCHECK_TESTS)
        _, inverse, point, offset = ops.voxel_assign(*arguments)
        points.requires_grad_()
        arguments = (points, inverse, point, offset, reduce)
        torch.library.opcheck(ops.voxel_reduce.default, arguments, test_utils=OPCHECK_TESTS)
        out, argmax = ops.voxel_reduce(*arguments)
        grad = torch.randn_like(out).requires_grad_()
        arguments = (grad, inverse, point, offset, argmax, reduce)
        torch.library.opcheck(ops.voxel_reduce_backward.default, arguments, test_utils=OPCHECK_TESTS)


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_empty_single_and_degenerate(reduce):
    for points in (torch.zeros(0, 5), torch.full((9, 5), 1e6), torch.full((9, 5), float('nan'))):
        points.requires_grad_()
        voxels = voxelize(points, None, LOWER, VOXEL, (4, 4, 4), reduce)
        assert [tuple(value.shape) for value in voxels] == [(0, 5), (0, 4), (len(points),), (0,)]
        voxels.features.sum().backward()
        assert points.grad.shape == points.shape and not points.grad.any()
    one = voxelize(torch.tensor([[0.0, 0, 0]]), None, LOWER, VOXEL, (8, 8, 8), reduce)
    assert one.coords.tolist() == [[0, 4, 4, 0]] and one.counts.tolist() == [1]
    many = torch.tensor([[0.25, 0.125, 0.5, 2.0]]).repeat(100_000, 1)
    voxels = voxelize(many, None, LOWER, VOXEL, (8, 8, 8), reduce)
    expected = many[0] * (100_000 if reduce == 'sum' else 1)
    torch.testing.assert_close(voxels.features[0], expected)
    assert voxels.counts.tolist() == [100_000]


def test_wide_keys():
    """Cell numbers that do not fit into one word with the point number."""
    points, batch_index = cloud(5000, seed=3)
    batch_index = batch_index * 7_000_000
    size = (2**17, 2**13, 2**8)  # 38 bits, 23 bits of samples, 13 bits of points
    voxels = voxelize(points, batch_index, LOWER, VOXEL, size)
    expected = reference(points, batch_index, size, 'mean')
    assert all(torch.equal(a, b) for a, b in zip(voxels[1:], expected[1:]))
    torch.testing.assert_close(voxels.features, expected[0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_low_precision_sums_in_float32(dtype, reduce):
    points, batch_index = cloud(4000, dtype=dtype, size=(4, 4, 1))
    points.requires_grad_()
    voxels = voxelize(points, batch_index, LOWER, VOXEL, (4, 4, 1), reduce)
    exact = reference(points.double(), batch_index, (4, 4, 1), reduce)
    wide = reference(points.detach().float(), batch_index, (4, 4, 1), reduce)
    assert all(torch.equal(a, b) for a, b in zip(voxels[1:], wide[1:]))
    torch.testing.assert_close(voxels.features, wide[0].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)
    voxels.features.float().sum().backward()
    assert points.grad.dtype == dtype and exact[0].dtype == torch.float64


def test_max_takes_the_first_of_equals_and_keeps_nan():
    points = torch.tensor([[0.1, 0.1, 0.5, 3.0, 1.0], [0.1, 0.1, 0.5, 3.0, float('nan')], [0.1, 0.1, 0.5, 2.0, 5.0]])
    points.requires_grad_()
    features = voxelize(points, None, LOWER, VOXEL, (8, 8, 1), 'max').features
    assert features[0, 3] == 3.0 and features[0, 4].isnan()
    features[0, 3].backward()
    assert points.grad[:, 3].tolist() == [1.0, 0.0, 0.0]


def test_memory_layout_threads_and_repeats():
    size = (40, 40, 3)
    points, batch_index = cloud(60_000, 7, seed=1, size=size)
    points.requires_grad_()
    expected = voxelize(points, batch_index, LOWER, VOXEL, size)
    gradient = torch.autograd.grad(expected.features.square().sum(), points)[0]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for _ in range(7):
                strange = awkward(points)
                found = voxelize(strange, awkward(batch_index), LOWER, VOXEL, size)
                assert all(torch.equal(a, b) for a, b in zip(found, expected))
                assert torch.equal(torch.autograd.grad(found.features.square().sum(), strange)[0], gradient)
    finally:
        torch.set_num_threads(threads)


def test_bad_input():
    points, batch_index = cloud(20)
    for message, call in {
        'points must have shape': lambda: voxelize(points[:, :2], None, LOWER, VOXEL, (4, 4, 4)),
        'points must be of dtype': lambda: voxelize(points.long(), None, LOWER, VOXEL, (4, 4, 4)),
        'points must be a tensor': lambda: voxelize(points.tolist(), None, LOWER, VOXEL, (4, 4, 4)),
        'batch_index must have 20': lambda: voxelize(points, batch_index[:3], LOWER, VOXEL, (4, 4, 4)),
        'batch_index must be of dtype': lambda: voxelize(points, batch_index.float(), LOWER, VOXEL, (4, 4, 4)),
        'batch_index must': lambda: voxelize(points, batch_index - 1, LOWER, VOXEL, (4, 4, 4)),
        'reduce must be one of': lambda: voxelize(points, None, LOWER, VOXEL, (4, 4, 4), 'median'),
        'voxel_size must be finite': lambda: voxelize(points, None, LOWER, [0, 1, 1], (4, 4, 4)),
        'size must be whole': lambda: voxelize(points, None, LOWER, VOXEL, (4, 4.5, 4)),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_too_many_cells_are_refused():
    points, batch_index = cloud(20)
    with pytest.raises(ValueError, match='batch_index must be in 0'):
        voxelize(points, batch_index + 2**40, LOWER, VOXEL, (2**19, 2**19, 2**10))
    with pytest.raises(ValueError, match='size must be in'):
        voxelize(points, None, LOWER, VOXEL, (2**32, 2, 2))


@needs_extension
def test_thousand_corrupt_indices_give_errors():
    generator = torch.Generator().manual_seed(0)
    points, batch_index = cloud(50)
    ops = torch.ops.occforge
    _, *good = ops.voxel_assign(points, batch_index, LOWER, VOXEL, [8, 8, 3])
    out, _ = ops.voxel_reduce(points, *good, 1)
    _, argmax = ops.voxel_reduce(points, *good, 2)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    far = [-(2**63), -2, 2**31, 2**62, 2**63 - 1]
    for trial in range(1000):
        inverse, point, offset = (value.clone() for value in good)
        broken = [inverse, point, offset][trial % 3]
        if draw(2):
            broken[draw(len(broken))] = far[draw(len(far))]
        elif draw(2):
            broken = broken[: draw(len(broken))]
        else:
            broken = broken.to([torch.int32, torch.float32][draw(2)])
        inverse, point, offset = (
            broken if place == trial % 3 else value for place, value in enumerate((inverse, point, offset))
        )
        with pytest.raises((ValueError, TypeError)):
            if trial % 3 == 0:
                ops.voxel_reduce_backward(out, inverse, point, offset, argmax, 2)
                ops.voxel_reduce(points, inverse, point, offset, 1)
            else:
                ops.voxel_reduce(points, inverse, point, offset, trial % 2)


@needs_extension
@pytest.mark.parametrize('reduce', ['mean', 'max'])
def test_compile(reduce):
    points, batch_index = cloud(200)
    points.requires_grad_()

    def run(points):
        return voxelize(points, batch_index, LOWER, VOXEL, (8, 8, 3), reduce)

    wanted = run(points)
    found = torch.compile(run, fullgraph=True, backend='aot_eager')(points)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    grads = (torch.autograd.grad(value.features.square().sum(), points)[0] for value in (found, wanted))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    from occforge.ops import has_extension, voxelize
    points = torch.tensor([[.1, .1, .1, 1.], [.2, .2, .2, 3.], [5., 5., 5., 9.]], requires_grad=True)
    voxels = voxelize(points, None, [0, 0, 0], [1, 1, 1], [2, 2, 2])
    voxels.features.sum().backward()
print(has_extension(), voxels.features[0, 3].item(), *voxels.inverse.tolist(), *points.grad[:, 3].tolist())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['False', '2.0', '0', '0', '-1', '0.5', '0.5', '0.0', '1']
