import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import ray_counts
from occforge.ops.ray_counts import ray_counts_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension


def scene(seed, lattice=False, rays=300):
    """Two random grids, similar to each other, and rays from in and around them; ``lattice``: rays full of ties."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(torch.randint(1, [14, 40][seed % 2], (3,), generator=generator).tolist())
    voxel_size = (torch.rand(3, generator=generator) + 0.1).tolist()
    lower = (torch.randn(3, generator=generator) * 5).tolist()
    if lattice:  # numbers that binary floating point holds exactly
        voxel_size, lower = [0.5, 0.25, 1.0], [-3.0, 2.0, 0.5]

    def labels(density):
        occupied = torch.rand(shape, generator=generator) < density
        return torch.where(occupied, torch.randint(0, 19, shape, generator=generator), 17).to(torch.uint8)

    density = [0.0, 0.01, 0.05, 0.3][seed % 4]
    target = labels(density)
    pred = torch.where(torch.rand(shape, generator=generator) < 0.6, target, labels(density))
    ring = torch.randint(0, 4, shape[:2], generator=generator).to(torch.uint8)
    size = torch.tensor(shape) * torch.tensor(voxel_size)
    origins = torch.rand(5, 3, generator=generator, dtype=torch.float64) * 1.6 * size - 0.3 * size
    directions = torch.randn(rays, 3, generator=generator, dtype=torch.float64)
    if lattice:
        half = torch.tensor(voxel_size, dtype=torch.float64) / 2
        origins, directions = (origins / half).round() * half, (directions * 2).round() * half
    origins = origins + torch.tensor(lower)
    return pred, target, ring, origins, directions, lower, voxel_size


def run(pred, target, ring, origins, directions, lower, voxel_size, thresholds=(0.3, 1.0, 4.0)):
    return ray_counts(pred, target, origins, directions, lower, voxel_size, 18, thresholds, 17, ring, 3)


def reference(pred, target, ring, origins, directions, lower, voxel_size, thresholds=(0.3, 1.0, 4.0)):
    return ray_counts_reference(
        pred, target, ring, origins, directions, lower, voxel_size, 17, 18, 3, [float(t) for t in thresholds]
    )


def test_hand_numbers():
    # Ten cells of 1 m along x. Truth: a car (4) in cell 5. Prediction: a car in cell 3.
    target = torch.full((10, 1, 1), 17, dtype=torch.uint8)
    pred = target.clone()
    target[5], pred[3] = 4, 4
    origins = torch.tensor([[0.5, 0.5, 0.5]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    # The first ray leaves the two cars at 5.5 and 3.5 m: apart by 2 m exactly, which is not below 2 m. The others meet
    # nothing true and do not count.
    counts = ray_counts(pred, target, origins, directions, [0, 0, 0], [1, 1, 1], 17, (1.0, 2.0, 4.0))
    assert counts.shape == (1, 5, 17) and counts[0, :, 4].tolist() == [1, 1, 0, 0, 1] and counts.sum() == 3
    pred[3] = 17  # nothing predicted: no ray by predicted class
    assert ray_counts(pred, target, origins, directions, [0, 0, 0], [1, 1, 1], 17)[0, :, 4].tolist() == [1, 0, 0, 0, 0]
    pred[5] = 3  # in the right place with another class
    counts = ray_counts(pred, target, origins, directions, [0, 0, 0], [1, 1, 1], 17)
    assert counts[0, :, 3].tolist() == [0, 1, 0, 0, 0] and counts[0, :, 4].tolist() == [1, 0, 0, 0, 0]
    # the ring is that of the true cell
    ring = torch.zeros(10, 1, dtype=torch.uint8)
    ring[5] = 1
    counts = ray_counts(pred, target, origins, directions, [0, 0, 0], [1, 1, 1], 17, (1.0,), 17, ring, 2)
    assert counts[0].sum() == 0 and counts[1, 1, 3] == counts[1, 0, 4] == 1
    ring[5] = 2
    assert ray_counts(pred, target, origins, directions, [0, 0, 0], [1, 1, 1], 17, (1.0,), 17, ring, 2).sum() == 0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**31), lattice=st.booleans(), rays=st.integers(0, 60))
def test_equals_reference(seed, lattice, rays):
    case = scene(seed, lattice, rays)
    counts = run(*case)
    assert torch.equal(counts, reference(*case))
    check_fake('ray_counts', *case, 17, 18, 3, [1.0, 2.0])
    assert (counts[:, 2:].diff(dim=1) >= 0).all()  # wider thresholds hit more


def test_perfect_prediction_hits_everywhere():
    _, target, ring, *rest = scene(7)
    counts = run(target, target, ring, *rest, thresholds=(1e-9,))
    assert (
        counts[:, 0].sum() > 100 and torch.equal(counts[:, 0], counts[:, 1]) and torch.equal(counts[:, 0], counts[:, 2])
    )


def test_odd_rays_are_left_out():
    pred, target, ring, origins, directions, lower, voxel_size = scene(3)
    expected = run(pred, target, ring, origins, directions, lower, voxel_size)
    odd = torch.tensor([[math.nan, 0, 1], [0, math.inf, 1], [0, 0, 0]], dtype=torch.float64)
    far = torch.tensor([[math.nan, 0, 0], [1e30, 0, 0]], dtype=torch.float64)
    found = run(pred, target, ring, torch.cat([far, origins]), torch.cat([odd, directions]), lower, voxel_size)
    assert torch.equal(found, reference(pred, target, ring, torch.cat([far, origins]), torch.cat([odd, directions]),
                                        lower, voxel_size))  # fmt: skip
    assert torch.equal(found, expected)
    assert run(pred, target, ring, origins[:0], directions, lower, voxel_size).sum() == 0
    assert run(pred, target, ring, origins, directions[:0], lower, voxel_size).sum() == 0


def test_layout_and_threads_do_not_matter():
    case = scene(11)
    expected = run(*case)
    assert torch.equal(run(*(awkward(value) for value in case[:5]), *case[5:]), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(*case), expected)
    finally:
        torch.set_num_threads(threads)


@needs_extension
def test_opcheck():
    pred, target, ring, origins, directions, lower, voxel_size = scene(5)
    arguments = (pred, target, ring, origins, directions, lower, voxel_size, 17, 18, 3, [1.0, 2.0])
    torch.library.opcheck(torch.ops.occforge.ray_counts.default, arguments, test_utils=OPCHECK_TESTS)


@needs_extension
def test_compile():
    case = scene(5)
    compiled = torch.compile(run, fullgraph=True, backend='aot_eager')
    assert torch.equal(compiled(*case), run(*case)) and run(*case).sum() > 0


def test_runs_without_the_extension():
    code = (
        'import torch\nfrom occforge.ops import ray_counts\n'
        'grid = torch.full((4, 1, 1), 17, dtype=torch.uint8)\ngrid[2] = 4\n'
        'print(ray_counts(grid, grid, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 0, 0]), [0] * 3, [1] * 3, 17)'
        '[0, :, 4].tolist())'
    )
    assert run_without_extension(code).strip() == '[1, 1, 1, 1, 1]'


@pytest.mark.parametrize(
    'change, error, message',
    [
        (dict(pred=torch.zeros(3, 4, 5)), TypeError, 'dtype'),
        (dict(pred=torch.zeros(3, 4, 6, dtype=torch.uint8)), ValueError, 'same shape'),
        (dict(origins=torch.zeros(2, 2)), ValueError, 'origins'),
        (dict(directions=torch.zeros(2, 3, dtype=torch.int64)), TypeError, 'directions'),
        (dict(ring=torch.zeros(4, 4, dtype=torch.uint8)), ValueError, 'ring'),
        (dict(num_classes=0), ValueError, 'num_classes'),
        (dict(rings=256), ValueError, 'rings'),
        (dict(free=-1), ValueError, 'free'),
        (dict(thresholds=[1.0] * 17), ValueError, 'thresholds'),
        (dict(voxel_size=[1, 0, 1]), ValueError, 'voxel_size'),
    ],
)
def test_wrong_arguments(change, error, message):
    grid = torch.zeros(3, 4, 5, dtype=torch.uint8)
    good = dict(pred=grid, target=grid, origins=torch.zeros(2, 3), directions=torch.ones(2, 3), lower=[0, 0, 0],
                voxel_size=[1, 1, 1], num_classes=17)  # fmt: skip
    ray_counts(**good)
    with pytest.raises(error, match=message):
        ray_counts(**{**good, **change})
