import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import cast_rays, observed_cells
from occforge.ops.grid_raycast import cast_rays_reference, observed_cells_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

INF = float('inf')
NAN = float('nan')


def scene(seed, rays=500, lattice=False):
    """A random grid with rays from in and around it; ``lattice`` puts both ends on cell corners and centres (ties)."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(torch.randint(1, 14, (3,), generator=generator).tolist())
    voxel_size = (torch.rand(3, generator=generator) + 0.1).tolist()
    lower = (torch.randn(3, generator=generator) * 5).tolist()
    if lattice:  # numbers that binary floating point holds exactly
        voxel_size, lower = [0.5, 0.25, 1.0], [-3.0, 2.0, 0.5]
    occupied = torch.rand(shape, generator=generator) < [0.0, 0.02, 0.3][seed % 3]
    grid = torch.where(occupied, torch.randint(0, 17, shape, generator=generator), 17).to(torch.uint8)
    size, corner = torch.tensor(shape) * torch.tensor(voxel_size), torch.tensor(lower)
    ends = torch.rand(2, rays, 3, generator=generator, dtype=torch.float64) * 1.6 * size - 0.3 * size
    if lattice:
        half = torch.tensor(voxel_size, dtype=torch.float64) / 2
        ends = (ends / half).round() * half
    return grid, *(ends + corner), lower, voxel_size


def crossed_by_intervals(grid, origin, target, lower, voxel_size):
    """Independent of any stepping: the line clipped against each cell; entry < exit where it has a length in it."""
    centres = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing='ij'), -1).double()
    low = torch.tensor(lower, dtype=torch.float64) + centres * torch.tensor(voxel_size, dtype=torch.float64)
    high = low + torch.tensor(voxel_size, dtype=torch.float64)
    a, b = (low - origin) / (target - origin), (high - origin) / (target - origin)
    return torch.minimum(a, b).amax(-1).clamp(min=0.0), torch.maximum(a, b).amin(-1)


def test_hand_numbers():
    # 4 x 3 x 2 cells of 0.5 m from (0, 0, 0); cell (2, 1, 0) is a car (4), cell (3, 1, 0) a bus (3).
    grid = torch.full((4, 3, 2), 17, dtype=torch.uint8)
    grid[2, 1, 0], grid[3, 1, 0] = 4, 3
    origins = torch.tensor(
        [[0.25, 0.75, 0.25], [0.25, 0.25, 0.75], [-1.0, 0.75, 0.25], [1.9, 0.6, 0.1], [9.0, 9.0, 9.0]]
    )
    directions = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    hits = cast_rays(grid, origins, directions, [0, 0, 0], [0.5, 0.5, 0.5])
    # 1: from x = 0.25 to the car's faces at x = 1.0 and 1.5.  2: upper layer, leaves the grid at x = 2.0.
    # 3: from outside with a direction of length 2: (1.0 + 1.0) / 2 and (1.5 + 1.0) / 2.
    # 4: starts inside the bus, leaves its cell at z = 0.5.  5: never meets the grid.
    assert hits.label.tolist() == [4, 17, 4, 3, 17]
    assert hits.cell.tolist() == [[2, 1, 0], [-1, -1, -1], [2, 1, 0], [3, 1, 0], [-1, -1, -1]]
    torch.testing.assert_close(hits.entry, torch.tensor([0.75, INF, 1.0, 0.0, INF], dtype=torch.float64))
    torch.testing.assert_close(hits.exit, torch.tensor([1.25, 1.75, 1.25, 0.4, 0.0], dtype=torch.float64))

    hits = cast_rays(grid, origins[:1], directions[:1], [0, 0, 0], [0.5, 0.5, 0.5], max_distance=0.7)
    assert (hits.label.item(), hits.exit.item()) == (17, 0.7)

    seen = observed_cells(
        grid, torch.tensor([0.25, 0.75, 0.25]), torch.tensor([1.75, 0.75, 0.25]), [0, 0, 0], [0.5] * 3
    )
    assert seen.nonzero().tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0]]  # the car hides the bus
    seen = observed_cells(
        grid, torch.tensor([0.25, 0.75, 0.25]), torch.tensor([1.75, 0.75, 0.25]), [0, 0, 0], [0.5] * 3, 17, True
    )
    assert seen.nonzero().tolist() == [[0, 1, 0], [1, 1, 0], [2, 1, 0], [3, 1, 0]]


def test_diagonal_takes_one_of_the_equal_axes_at_a_time():
    grid = torch.full((2, 2, 1), 17, dtype=torch.uint8)
    seen = observed_cells(grid, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.5, 1.5, 0.5]), [0, 0, 0], [1, 1, 1])
    assert seen[:, :, 0].tolist() == [[True, True], [False, True]]  # y before x


@pytest.mark.parametrize('seed', range(12))
def test_equals_interval_clipping(seed):
    grid, origins, targets, lower, voxel_size = scene(seed, rays=40)
    hits = cast_rays(grid, origins, targets - origins, lower, voxel_size)
    for r in range(len(origins)):
        entry, exit = crossed_by_intervals(grid, origins[r], targets[r], lower, voxel_size)
        crossed = exit - entry > 1e-9
        occupied = crossed & (grid != 17)
        if not occupied.any():
            assert hits.label[r] == 17
            leaves = exit[crossed].max().item() if crossed.any() else 0.0
            assert hits.exit[r].item() == pytest.approx(leaves, abs=1e-9)
        else:
            first = torch.where(occupied, entry, INF).argmin()
            assert hits.cell[r].tolist() == list(torch.unravel_index(first, grid.shape))
            assert hits.label[r] == grid.flatten()[first]
            assert hits.entry[r].item() == pytest.approx(entry.flatten()[first].item(), abs=1e-9)
            assert hits.exit[r].item() == pytest.approx(exit.flatten()[first].item(), abs=1e-9)
        seen = observed_cells(grid, origins[r], targets[r], lower, voxel_size, through_occupied=True)
        # inside the segment by more than rounding: seen; apart from it by more than rounding: not seen
        assert seen[(torch.minimum(exit, torch.tensor(1.0)) - entry) > 1e-9].all()
        assert not seen[(torch.minimum(exit, torch.tensor(1.0)) - entry) < -1e-9].any()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31), lattice=st.booleans(), rays=st.integers(23, 200))
def test_equals_reference(seed, lattice, rays):
    grid, origins, targets, lower, voxel_size = scene(seed, rays, lattice)
    directions = targets - origins
    directions[:20, seed % 3] = 0
    directions[20] = 0
    origins[21, 1], directions[22, 2] = NAN, INF
    hits = cast_rays(grid, origins, directions, lower, voxel_size, max_distance=0.9)
    index = torch.zeros(len(origins), dtype=torch.int64)
    expected = cast_rays_reference(grid[None], origins, directions, index, lower, voxel_size, 17, 0.9)
    for found, wanted in zip(hits, expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)  # to the last bit
    assert hits.exit[20:23].isnan().all() and (hits.cell[20:23] == -1).all()
    check_fake('cast_rays', grid[None], origins, directions, index, lower, voxel_size, 17, 0.9)
    check_fake('observed_cells', grid, origins, targets, lower, voxel_size, 17, False)
    for through in (False, True):
        seen = observed_cells(grid, origins, targets, lower, voxel_size, through_occupied=through)
        assert torch.equal(seen, observed_cells_reference(grid, origins, targets, lower, voxel_size, 17, through))


def test_several_grids():
    grids = torch.stack([scene(seed)[0].new_full((5, 4, 3), 17) for seed in range(3)])
    grids[1, 3], grids[2, 4] = 1, 2
    origins = torch.tensor([0.5, 1.5, 1.5])
    hits = cast_rays(
        grids,
        origins,
        torch.tensor([[1.0, 0, 0]]).expand(3, 3),
        [0, 0, 0],
        [1, 1, 1],
        grid_index=torch.tensor([2, 1, 0]),
    )
    assert hits.label.tolist() == [2, 1, 17]
    assert hits.entry.tolist() == [3.5, 2.5, INF]


@needs_extension
def test_opcheck():
    for seed in range(4):
        grid, origins, targets, lower, voxel_size = scene(seed, rays=seed)
        index = torch.zeros(seed, dtype=torch.int64)
        arguments = (grid[None], origins, targets - origins, index, lower, voxel_size, 17, INF)
        torch.library.opcheck(torch.ops.occforge.cast_rays.default, arguments, test_utils=OPCHECK_TESTS)
        arguments = (grid, origins, targets, lower, voxel_size, 17, False)
        torch.library.opcheck(torch.ops.occforge.observed_cells.default, arguments, test_utils=OPCHECK_TESTS)


def test_empty_and_single():
    grid = torch.full((3, 3, 3), 17, dtype=torch.uint8)
    none = torch.zeros(0, 3)
    hits = cast_rays(grid, none, none, [0, 0, 0], [1, 1, 1])
    assert [tuple(value.shape) for value in hits] == [(0,), (0, 3), (0,), (0,)]
    assert not observed_cells(grid, none, none, [0, 0, 0], [1, 1, 1]).any()
    one = torch.zeros(1, 1, 1, dtype=torch.uint8)
    hits = cast_rays(one, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 0, -1.0]), [0, 0, 0], [1, 1, 1])
    assert (hits.label.item(), hits.entry.item(), hits.exit.item()) == (0, 0.0, 0.5)
    seen = observed_cells(one, torch.full((3,), 0.5), torch.full((3,), 0.5), [0, 0, 0], [1, 1, 1])
    assert seen.all()  # a segment of no length
    empty = torch.zeros(0, 3, 3, dtype=torch.uint8)
    assert cast_rays(empty, torch.ones(3), torch.ones(3), [0, 0, 0], [1, 1, 1]).exit.item() == 0.0
    assert cast_rays(grid == 17, torch.ones(3) * 1.5, torch.ones(3), [0] * 3, [1] * 3, free=0).label.item() == 1


def test_memory_layout_and_threads():
    grid, origins, targets, lower, voxel_size = scene(2, rays=3000)
    expected = cast_rays(grid, origins, targets - origins, lower, voxel_size)
    seen = observed_cells(grid, origins, targets, lower, voxel_size)
    found = cast_rays(awkward(grid), awkward(origins), awkward(targets - origins), lower, voxel_size)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert torch.equal(observed_cells(awkward(grid), awkward(origins), awkward(targets), lower, voxel_size), seen)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(5):
            found = cast_rays(grid, origins, targets - origins, lower, voxel_size)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
            assert torch.equal(observed_cells(grid, origins, targets, lower, voxel_size), seen)
    finally:
        torch.set_num_threads(threads)


def test_bad_input():
    grid = torch.full((2, 3, 4, 5), 17, dtype=torch.uint8)
    rays, frame = torch.ones(6, 3), ([0, 0, 0], [1, 1, 1])
    for message, call in {
        'grid must be of dtype uint8': lambda: cast_rays(grid.float(), rays, rays, *frame),
        'grid must have shape': lambda: cast_rays(grid[0, 0], rays, rays, *frame),
        'grid_index is needed': lambda: cast_rays(grid, rays, rays, *frame),
        'origins must have shape': lambda: cast_rays(grid, rays[:, :2], rays, *frame),
        'origins must be floating': lambda: cast_rays(grid, rays.long(), rays, *frame),
        'as many rows': lambda: cast_rays(grid, rays, rays[:4], *frame),
        'voxel_size must be finite and above 0': lambda: cast_rays(grid[0], rays, rays, [0, 0, 0], [1, 0, 1]),
        'lower must have 3': lambda: cast_rays(grid[0], rays, rays, [0, 0], [1, 1, 1]),
        'lower must be finite': lambda: cast_rays(grid[0], rays, rays, [0, 0, NAN], [1, 1, 1]),
        'free must be': lambda: cast_rays(grid[0], rays, rays, *frame, free=256),
        'max_distance must not': lambda: cast_rays(grid[0], rays, rays, *frame, max_distance=-1.0),
        'grid_index must be of dtype int64': lambda: cast_rays(grid, rays, rays, *frame, grid_index=torch.zeros(6)),
        'grid must be of dtype': lambda: observed_cells(grid[0].long(), rays, rays, *frame),
        'targets must have shape': lambda: observed_cells(grid[0], rays, torch.ones(6, 4), *frame),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_corrupt_grid_index():
    grid = torch.full((3, 2, 2, 2), 17, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    rays = torch.ones(64, 3)
    for trial in range(1000):
        index = torch.randint(0, 3, (64,), generator=generator)
        index[torch.randint(0, 64, (1,), generator=generator)] = [-1, 3, 2**40, -(2**63)][trial % 4]
        with pytest.raises(ValueError, match=r'grid_index must be in 0\.\.2'):
            cast_rays(grid, rays, rays, [0, 0, 0], [1, 1, 1], grid_index=index)


def test_range_of_numbers():
    grid = torch.full((2, 2, 2), 17, dtype=torch.uint8)
    numbers = torch.tensor([0.0, 1e-310, -1e-310, 1e-200, 1e300, -1e300, math.pi, NAN, INF, -INF], dtype=torch.float64)
    origins = torch.cartesian_prod(numbers, numbers, numbers)
    for shift in range(0, len(origins), 137):
        hits = cast_rays(grid, origins, origins.roll(shift, 0), [0, 0, 0], [1, 1, 1])
        assert (hits.label == 17).all()
        observed_cells(grid, origins, origins.roll(shift, 0), [0, 0, 0], [1, 1, 1])


@needs_extension
def test_compile():
    grid, origins, targets, lower, voxel_size = scene(2, rays=50)

    def run(grid, origins, targets):
        hits = cast_rays(grid, origins, targets - origins, lower, voxel_size)
        return *hits, observed_cells(grid, origins, targets, lower, voxel_size)

    found = torch.compile(run, fullgraph=True, backend='aot_eager')(grid, origins, targets)
    assert all(torch.equal(a, b) for a, b in zip(found, run(grid, origins, targets)))


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    import occforge.ops
    from occforge.ops import cast_rays, observed_cells
    grid = torch.full((4, 3, 2), 17, dtype=torch.uint8)
    grid[2, 1, 0] = 4
    for _ in range(2):
        hits = cast_rays(grid, torch.tensor([.25, .75, .25]), torch.tensor([1., 0, 0]), [0] * 3, [.5] * 3)
    seen = observed_cells(grid, torch.tensor([.25, .75, .25]), torch.tensor([1.75, .75, .25]), [0] * 3, [.5] * 3)
print(not occforge.ops.has_extension(), hits.entry.item(), hits.label.item(), seen.sum().item())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['True', '0.75', '4', '3', '1']
