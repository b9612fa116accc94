import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import hard_voxelize, voxelize
from occforge.ops.voxelize import voxel_assign_reference, voxel_limit_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

LOWER, VOXEL, SIZE = [-2.0, -1.0, 0.0], [0.5, 0.25, 1.0], (8, 8, 3)
GRID = (LOWER, VOXEL, SIZE)


def cloud(count, columns=5, samples=2, seed=0, dtype=torch.float32):
    """Points in and around the grid, several a cell, some of them not numbers."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(SIZE) * torch.tensor(VOXEL)
    points = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    points[:, :3] = torch.tensor(LOWER) + (torch.rand(count, 3, generator=generator) ** 2 * 1.4 - 0.2) * extent
    points[: count // 10, seed % 3] = [float('nan'), float('inf'), -float('inf'), 1e30][seed % 4]
    return points.to(dtype), torch.randint(0, samples, (count,), generator=generator)


def one_point_after_the_other(points, batch_index, max_points, max_voxels):
    """The definition, in Python: slots (V, max_points, F), coords, inverse, counts."""
    samples = sorted(set(batch_index.tolist()))
    found, inverse = {sample: {} for sample in samples}, np.full(len(points), -1)
    for i, (point, sample) in enumerate(zip(points.numpy(), batch_index.tolist())):
        at = (point[:3] - np.float32(LOWER)) / np.float32(VOXEL)
        if not ((at >= 0) & (at < SIZE)).all():
            continue
        cell = tuple(int(n) for n in np.floor(at))
        if cell not in found[sample]:
            if len(found[sample]) == max_voxels:
                continue
            found[sample][cell] = []
        if len(found[sample][cell]) < max_points:
            found[sample][cell].append(i)
    voxels = [((sample, *cell), members) for sample in samples for cell, members in found[sample].items()]
    slots = torch.zeros(len(voxels), max_points, points.shape[1])
    for number, (_, members) in enumerate(voxels):
        inverse[members] = number
        slots[number, : len(members)] = points[members]
    return slots, [cell for cell, _ in voxels], inverse.tolist(), [len(members) for _, members in voxels]


def test_hand_numbers():
    columns = [
        [-1.2, -0.6, 0.5, 10.0],  # cell (1, 1, 0), the first voxel
        [-1.9, -0.9, 0.5, 20.0],  # cell (0, 0, 0), the second
        [-1.1, -0.7, 0.9, 30.0],  # the first again
        [0.1, -0.9, 0.5, 40.0],  # cell (4, 0, 0): one voxel too many
        [-1.3, -0.6, 0.5, 50.0],  # the first again: one point too many
        [-1.8, -0.9, 0.5, 60.0],  # the second again, although the voxels have run out
        [9.0, 0.0, 0.5, 70.0],  # outside
    ]
    points = torch.tensor(columns, requires_grad=True)
    voxels = hard_voxelize(points, None, *GRID, max_points=2, max_voxels=2)
    assert voxels.coords.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert voxels.inverse.tolist() == [0, 1, 0, -1, -1, 1, -1]
    assert voxels.counts.tolist() == [2, 2]
    assert voxels.features[:, 3].tolist() == [20.0, 40.0]
    (voxels.features[:, 3] * torch.tensor([1.0, 10.0])).sum().backward()
    assert points.grad[:, 3].tolist() == [0.5, 5.0, 0.5, 0.0, 0.0, 5.0, 0.0]
    slots = hard_voxelize(points, None, *GRID, 3, 2, 'none')
    assert slots.features[:, :, 3].tolist() == [[10.0, 30.0, 50.0], [20.0, 60.0, 0.0]]
    assert hard_voxelize(points, None, *GRID, 1, None, 'sum').features[:, 3].tolist() == [10.0, 20.0, 40.0]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 200),
    columns=st.integers(3, 9),
    samples=st.sampled_from([1, 3, 20]),
    max_points=st.integers(1, 6),
    max_voxels=st.sampled_from([1, 2, 5, 20, 1000]),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition_and_the_reference(count, columns, samples, max_points, max_voxels, seed):
    points, batch_index = cloud(count, columns, samples, seed)
    slots, coords, inverse, counts = one_point_after_the_other(points, batch_index, max_points, max_voxels)
    found = hard_voxelize(points, batch_index, *GRID, max_points, max_voxels, 'none')
    assert found.coords.tolist() == [list(cell) for cell in coords]
    assert found.inverse.tolist() == inverse and found.counts.tolist() == counts
    assert torch.equal(found.features, slots)
    empty = torch.arange(max_points) >= torch.tensor(counts, dtype=torch.int64)[:, None]
    for reduce, wanted in {
        'sum': slots.sum(1),
        'mean': slots.sum(1) / torch.tensor(counts)[:, None],
        'max': slots.masked_fill(empty[:, :, None], -float('inf')).amax(1),
    }.items():
        reduced = hard_voxelize(points, batch_index, *GRID, max_points, max_voxels, reduce)
        assert torch.equal(reduced.coords, found.coords)
        torch.testing.assert_close(reduced.features, wanted, rtol=1e-5, atol=1e-5)
    assigned = voxel_assign_reference(points, batch_index, *GRID)
    wanted = voxel_limit_reference(*assigned, max_points, max_voxels)
    assert torch.equal(wanted[0], found.coords) and torch.equal(wanted[1], found.inverse)
    assert torch.equal(wanted[3].diff(), found.counts)
    assert torch.equal(wanted[2].sort().values, torch.arange(count))
    check_fake('voxel_limit', *assigned, max_points, max_voxels)


def test_without_limits_the_dynamic_voxels_in_order_of_arrival():
    points, batch_index = cloud(500, samples=3)
    hard, dynamic = hard_voxelize(points, batch_index, *GRID), voxelize(points, batch_index, *GRID)
    order = [hard.coords.tolist().index(cell) for cell in dynamic.coords.tolist()]
    assert torch.equal(hard.features[order], dynamic.features)
    assert torch.equal(hard.counts[order], dynamic.counts)
    first = [hard.inverse.tolist().index(voxel) for voxel in range(len(hard.coords))]
    for sample in range(3):
        own = [i for i, cell in zip(first, hard.coords.tolist()) if cell[0] == sample]
        assert own == sorted(own)


@pytest.mark.parametrize('reduce', ['none', 'mean', 'sum', 'max'])
@pytest.mark.parametrize('seed', range(5))
def test_gradcheck(reduce, seed):
    points, batch_index = cloud(14, 3 + seed, seed=seed, dtype=torch.float64)
    kept = torch.isfinite(points).all(1)
    points, batch_index = points[kept].requires_grad_(), batch_index[kept]

    def run(columns):
        return hard_voxelize(columns, batch_index, LOWER, [2.0, 1.0, 1.5], (2, 2, 2), 2, 3, reduce).features

    assert torch.autograd.gradcheck(run, points)
    assert torch.autograd.gradgradcheck(run, points)


@needs_extension
@pytest.mark.parametrize('count', [0, 1, 2, 40, 100])
def test_opcheck(count):
    points, batch_index = cloud(count)
    assigned = torch.ops.occforge.voxel_assign(points, batch_index, *GRID)
    for limits in ((1, 3), (2**62, 2**62)):
        torch.library.opcheck(torch.ops.occforge.voxel_limit.default, (*assigned, *limits), test_utils=OPCHECK_TESTS)


@pytest.mark.parametrize('reduce', ['none', 'mean', 'sum', 'max'])
def test_empty_single_and_degenerate(reduce):
    for points in (torch.zeros(0, 5), torch.full((9, 5), 1e6), torch.full((9, 5), float('nan'))):
        points.requires_grad_()
        voxels = hard_voxelize(points, None, *GRID, 4, 3, reduce)
        slots = (0, 4, 5) if reduce == 'none' else (0, 5)
        assert [tuple(value.shape) for value in voxels] == [slots, (0, 4), (len(points),), (0,)]
        voxels.features.sum().backward()
        assert points.grad.shape == points.shape and not points.grad.any()
    one = hard_voxelize(torch.tensor([[0.0, 0, 0]]), None, *GRID, 1, 1, reduce)
    assert one.coords.tolist() == [[0, 4, 4, 0]] and one.counts.tolist() == [1]
    many = torch.tensor([[0.25, 0.125, 0.5, 2.0]]).repeat(100_000, 1)
    voxels = hard_voxelize(many, None, *GRID, 10, 1, reduce)
    assert voxels.counts.tolist() == [10] and int((voxels.inverse >= 0).sum()) == 10


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    points, batch_index = cloud(400, dtype=dtype)
    found = hard_voxelize(points, batch_index, *GRID, 4, 20)
    wide = hard_voxelize(points.float(), batch_index, *GRID, 4, 20)
    assert all(torch.equal(a, b) for a, b in zip(found[1:], wide[1:]))
    torch.testing.assert_close(found.features, wide.features.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)
    slots = hard_voxelize(points, batch_index, *GRID, 4, 20, 'none').features
    assert torch.equal(slots.float(), hard_voxelize(points.float(), batch_index, *GRID, 4, 20, 'none').features)


def test_memory_layout_threads_and_repeats():
    points, batch_index = cloud(30_000, 7, seed=1)
    points.requires_grad_()
    expected = hard_voxelize(points, batch_index, *GRID, 50, 150)
    gradient = torch.autograd.grad(expected.features.square().sum(), points)[0]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for _ in range(7):
                strange = awkward(points)
                found = hard_voxelize(strange, awkward(batch_index), *GRID, 50, 150)
                assert all(torch.equal(a, b) for a, b in zip(found, expected))
                assert torch.equal(torch.autograd.grad(found.features.square().sum(), strange)[0], gradient)
    finally:
        torch.set_num_threads(threads)


def test_bad_input():
    points, batch_index = cloud(20)
    for message, call in {
        'max_points must be a whole': lambda: hard_voxelize(points, None, *GRID, 0, 4),
        'max_voxels must be a whole': lambda: hard_voxelize(points, None, *GRID, 4, -1),
        'max_voxels must be a whole number': lambda: hard_voxelize(points, None, *GRID, 4, 1.5),
        'max_points must be given': lambda: hard_voxelize(points, None, *GRID, reduce='none'),
        'reduce must be one of max, mean, none, sum': lambda: hard_voxelize(points, None, *GRID, 4, 4, 'first'),
        'points must have shape': lambda: hard_voxelize(points[:, :2], None, *GRID, 4, 4),
        'batch_index must have 20': lambda: hard_voxelize(points, batch_index[:3], *GRID, 4, 4),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    with pytest.raises(ValueError, match='reduce must be one of max, mean, sum'):
        voxelize(points, None, *GRID, 'none')


@needs_extension
def test_thousand_corrupt_assignments():
    """An error, or (for a voxel number that could be another's) a result inside its bounds; never a stray access."""
    generator = torch.Generator().manual_seed(0)
    good = torch.ops.occforge.voxel_assign(*cloud(60), *GRID)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for trial in range(1000):
        bad = [value.clone() for value in good]
        broken = bad[1 + trial % 3]
        how = draw(3)
        if how == 0:
            broken[draw(len(broken))] = [-(2**63), -2, 2**31, 2**62, 2**63 - 1][draw(5)]
        elif how == 1:
            bad[1 + trial % 3] = broken[: draw(len(broken))]
        else:
            bad[1 + trial % 3] = broken.to([torch.int32, torch.float32][draw(2)])
        with pytest.raises((ValueError, TypeError)):
            torch.ops.occforge.voxel_limit(*bad, 3, 10)
    shuffled = good[1][torch.randperm(60, generator=generator)]
    coords, inverse, point, offset = torch.ops.occforge.voxel_limit(good[0], shuffled, *good[2:], 3, 10)
    assert int(inverse.max()) < len(coords) == len(offset) - 1 and len(point) == 60


@needs_extension
def test_compile():
    points, batch_index = cloud(200)
    points.requires_grad_()

    def run(points):
        return hard_voxelize(points, batch_index, *GRID, 3, 20)

    wanted = run(points)
    for backend in ('eager', 'aot_eager'):
        found = torch.compile(run, fullgraph=True, backend=backend)(points)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted))
    grads = (torch.autograd.grad(value.features.square().sum(), points)[0] for value in (found, wanted))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    from occforge.ops import hard_voxelize, has_extension
    points = torch.tensor([[1.1, .1, .1, 1.], [.2, .2, .2, 3.], [1.2, .1, .1, 9.]], requires_grad=True)
    voxels = hard_voxelize(points, None, [0, 0, 0], [1, 1, 1], [2, 2, 2], 1, 9)
    voxels.features.sum().backward()
print(has_extension(), *voxels.features[:, 3].tolist(), *voxels.inverse.tolist(), *points.grad[:, 3].tolist())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['False', '1.0', '3.0', '0', '1', '-1', '1.0', '1.0', '0.0', '1']
