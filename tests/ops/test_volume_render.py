import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import accumulate, alpha_to_weights, clip_rays, render_rays, render_samples, sample_rays
from occforge.ops.volume_render import interpolate_grids, render_rays_reference, render_samples_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

LOWER, VOXEL = [-2.0, -2.0, -1.0], [0.5, 0.5, 0.4]


def case(rays, channels, size=(8, 7, 5), batch=2, seed=0, dtype=torch.float32):
    """Grids, rays in and around them, and the grid of each ray."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    density, semantics = (draw(batch, *size) * 3).to(dtype), draw(batch, *size, channels).to(dtype)
    origins, directions = draw(rays, 3) * 2, draw(rays, 3)
    directions[torch.rand(rays, 3, generator=generator) < 0.1] = 0
    index = torch.randint(0, batch, (rays,), generator=generator)
    return density.requires_grad_(), semantics.requires_grad_(), origins.to(dtype), directions.to(dtype), index


def gradients(out, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in out]
    return torch.autograd.grad(tuple(out), inputs, upstream)


def by_reference(density, semantics, origins, directions, index, step=0.0, count=0, seed=None, **rest):
    chosen = dict(near=0.0, far=math.inf, position=0.5, unit=1.0, shift=0.0, stop=1e-4, min_weight=0.0) | rest
    numbers = (chosen[name] for name in ('near', 'far'))
    others = (chosen[name] for name in ('position', 'unit', 'shift', 'stop', 'min_weight'))
    seed = None if seed is None else torch.tensor(seed)
    return render_rays_reference(
        density, semantics, origins, directions, index, seed, LOWER, VOXEL, *numbers, step, count, *others
    )


def test_hand_numbers():
    # Two cells of 1 m along x with softplus(density) = ln 2, ln 4; unit directions, samples at their centres.
    density = torch.tensor([math.log(1.0), math.log(3.0)]).view(1, 2, 1, 1).requires_grad_()
    semantics = torch.tensor([[8.0, 0.0], [0.0, 16.0]]).view(1, 2, 1, 1, 2).requires_grad_()
    origins = torch.tensor([[-1.0, 0.5, 0.5], [-1.0, 3.0, 0.5]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    out = render_rays(density, semantics, origins, directions, [0, 0, 0], [1, 1, 1], step=1.0, stop=0.0)
    # alpha = 1/2, 3/4; w = 1/2, 3/8; T = 1/8; t = 1.5, 2.5
    assert out.depth.tolist() == pytest.approx([0.5 * 1.5 + 0.375 * 2.5, 0.0])
    assert out.semantics.tolist() == [pytest.approx([4.0, 6.0]), [0.0, 0.0]]
    assert out.transmittance.tolist() == pytest.approx([0.125, 1.0])
    assert out.distortion.tolist() == pytest.approx([2 * 0.1875 + (0.25 + 0.140625) / 3, 0.0])
    # semantics: w x upstream; density: dT = -T dtau, dtau / dd = sigmoid = 1/2, 3/4
    found = torch.autograd.grad((out.semantics, out.transmittance), semantics, (torch.ones(2, 2), torch.zeros(2)))
    assert found[0].flatten().tolist() == pytest.approx([0.5, 0.5, 0.375, 0.375])
    out = render_rays(density, semantics, origins, directions, [0, 0, 0], [1, 1, 1], step=1.0, stop=0.0)
    (found,) = torch.autograd.grad(out.transmittance.sum(), density)
    assert found.flatten().tolist() == pytest.approx([-0.125 * 0.5, -0.125 * 0.75])
    stopped = render_rays(density, semantics, origins, directions, [0, 0, 0], [1, 1, 1], step=1.0, stop=0.6)
    assert stopped.transmittance.tolist() == pytest.approx([0.5, 1.0])
    half = render_rays(density, semantics, origins, directions * 2, [0, 0, 0], [1, 1, 1], step=1.0, stop=0.0)
    assert half.depth.tolist() == pytest.approx([0.5 * 0.75 + 0.375 * 1.25, 0.0])  # t halves, weights do not change


def test_interpolation_is_that_of_grid_sample():
    density, semantics, *_ = case(1, 3, batch=1)
    size = torch.tensor(density.shape[1:])
    points = (torch.rand(500, 3) * 1.6 - 0.3) * size
    grid = ((points + 0.5) * 2 / size - 1).flip(-1)[None, None, None]
    wanted = torch.nn.functional.grid_sample(semantics.permute(0, 4, 1, 2, 3), grid, align_corners=False)
    found = interpolate_grids(semantics, points, torch.zeros(500, dtype=torch.int64))
    torch.testing.assert_close(found, wanted[0, :, 0, 0].T, rtol=1e-4, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    rays=st.integers(0, 30),
    channels=st.integers(0, 45),
    size=st.tuples(*(st.integers(1, 9) for _ in range(3))),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    stop=st.sampled_from([0.0, 1e-4, 0.3]),
    min_weight=st.sampled_from([0.0, 1e-3]),
)
def test_equals_reference(rays, channels, size, batch, seed, stop, min_weight):
    density, semantics, origins, directions, index = case(rays, channels, size, batch, seed, torch.float64)
    origins.flatten()[: seed % 2] = math.nan
    common = dict(near=0.1, unit=0.4, shift=-1.0, stop=stop, min_weight=min_weight)
    stratified = seed if seed % 3 == 0 else None
    numbers = (LOWER, VOXEL, 0.1, 9.0, 0.21, 0, 0.5, 0.4, -1.0, stop, min_weight)
    check_fake('volume_render', density.detach(), semantics.detach(), origins, directions, index, None, *numbers)
    for ours, theirs in ((dict(step=0.21), dict(step=0.21)), (dict(samples=37), dict(count=37))):
        out = render_rays(
            density, semantics, origins, directions, LOWER, VOXEL, **ours, **common, seed=stratified, grid_index=index
        )
        wanted = by_reference(density, semantics, origins, directions, index, **theirs, **common, seed=stratified)
        for a, b in zip(out, wanted):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        if rays:
            for a, b in zip(gradients(out, (density, semantics)), gradients(wanted, (density, semantics))):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('seed', range(10))
def test_float32_equals_double(seed):
    density, semantics, origins, directions, index = case(60, 17, (12, 11, 6), seed=seed)
    options = dict(samples=80, unit=0.4, shift=-2.0, stop=0.0, grid_index=index)
    out = render_rays(density, semantics, origins, directions, LOWER, VOXEL, **options)
    doubles = [value.detach().double().requires_grad_() for value in (density, semantics)]
    wanted = render_rays(*doubles, origins.double(), directions.double(), LOWER, VOXEL, **options)
    for a, b in zip(out, wanted):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(out, (density, semantics)), gradients(wanted, doubles)):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-4)
    assert ((out.transmittance >= 0) & (out.transmittance <= 1)).all()


def packed(seed, dtype, rays=6, channels=3):
    """Samples of our own placing: what ``sample_rays`` gives, moved a little off the rays."""
    density, semantics, origins, directions, index = case(rays, channels, seed=seed, dtype=dtype)
    near, far = clip_rays(origins, directions, LOWER, [2.0, 1.5, 1.0])
    samples = sample_rays(near, far, counts=1 + seed % 7)
    points = (origins - torch.tensor(LOWER)) / torch.tensor(VOXEL) - 0.5
    points = points[samples.ray] + samples.t[:, None] * (directions / torch.tensor(VOXEL))[samples.ray]
    points = (points + torch.rand(points.shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
    return density, semantics, points, samples.t, samples.offset, index


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    size = [(4, 3, 2), (1, 3, 3), (3, 1, 1)][seed % 3]
    density, semantics, origins, directions, index = case(4, seed % 4 + 8 * (seed % 2), size, 2, seed, torch.float64)
    options = dict(shift=-0.5, unit=0.5, stop=[0.0, 1e-2][seed % 2], grid_index=index, samples=7)
    origins = origins * 0.4

    def render(density, semantics):
        return tuple(render_rays(density, semantics, origins, directions, LOWER, VOXEL, **options))

    assert torch.autograd.gradcheck(render, (density, semantics))
    density, semantics, points, t, offset, index = packed(seed, torch.float64)

    def place(density, semantics):
        return tuple(
            render_samples(density, semantics, points, t, offset, interval=0.3, width=0.2, grid_index=index, stop=0.0)
        )

    assert torch.autograd.gradcheck(place, (density, semantics))


@pytest.mark.parametrize('seed', range(10))
def test_placed_samples_equal_reference(seed):
    density, semantics, points, t, offset, index = packed(seed, torch.float64, rays=20, channels=3 + 5 * seed)
    if len(points):
        points[0] = math.nan
    interval = torch.rand(len(t), dtype=torch.float64) if seed % 2 else torch.tensor([0.4], dtype=torch.float64)
    width = torch.rand(len(t), dtype=torch.float64) if seed % 3 else torch.tensor([0.4], dtype=torch.float64)
    out = render_samples(
        density, semantics, points, t, offset, interval=interval, width=width, grid_index=index, stop=1e-2
    )
    wanted = render_samples_reference(density, semantics, points, t, interval, width, offset, index, 0.0, 1e-2, 0.0)
    for a, b in zip(out, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients(out, (density, semantics)), gradients(wanted, (density, semantics))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@needs_extension
@pytest.mark.parametrize('rays', [0, 1, 5])
def test_opcheck(rays):
    density, semantics, origins, directions, index = case(rays, 3, (4, 3, 2))
    ops = torch.ops.occforge
    settings = (LOWER, VOXEL, 0.0, 9.0, 0.3, 0, 0.5, 1.0, -1.0, 1e-3, 0.0)
    arguments = (density, semantics, origins, directions, index, torch.tensor(1), *settings)
    torch.library.opcheck(ops.volume_render.default, arguments, test_utils=OPCHECK_TESTS)
    out = [value.detach() for value in ops.volume_render(*arguments)]
    grids = (density.detach(), semantics.detach())
    backward = (*out, *out, *grids, *arguments[2:])
    torch.library.opcheck(ops.volume_render_backward.default, backward, test_utils=OPCHECK_TESTS)
    if rays:
        density, semantics, points, t, offset, index = packed(rays, torch.float32, rays)
        width = torch.tensor([0.1])
        arguments = (density, semantics, points, t, width, width, offset, index, -1.0, 1e-3, 0.0)
        torch.library.opcheck(ops.volume_render_samples.default, arguments, test_utils=OPCHECK_TESTS)
        out = [value.detach() for value in ops.volume_render_samples(*arguments)]
        backward = (*out, *out, density.detach(), semantics.detach(), *arguments[2:])
        torch.library.opcheck(ops.volume_render_samples_backward.default, backward, test_utils=OPCHECK_TESTS)


def test_layouts_threads_and_repeats():
    """The same bits from any memory layout and with any number of threads, forward and backward."""
    density, semantics, origins, directions, index = case(700, 19, (20, 18, 6), seed=3)
    options = dict(step=0.05, unit=0.4, shift=-1.0, seed=5)
    first = render_rays(density, semantics, origins, directions, LOWER, VOXEL, **options, grid_index=index)
    expected = gradients(first, (density, semantics))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for _ in range(3):
                grids = awkward(density), awkward(semantics)
                out = render_rays(
                    *grids, awkward(origins), awkward(directions), LOWER, VOXEL, **options, grid_index=awkward(index)
                )
                assert all(torch.equal(a, b) for a, b in zip(out, first))
                assert all(torch.equal(a, b) for a, b in zip(gradients(out, grids), expected))
    finally:
        torch.set_num_threads(threads)
    grids = [density.permute(0, 3, 2, 1), semantics.permute(0, 4, 3, 2, 1)]
    grids = [value.detach().contiguous().requires_grad_() for value in grids]
    out = render_rays(*grids, origins, directions, LOWER, VOXEL, **options, grid_index=index, layout='bcdhw')
    assert all(torch.equal(a, b) for a, b in zip(out, first))
    found = gradients(out, grids)
    assert torch.equal(found[0].permute(0, 3, 2, 1), expected[0])
    assert torch.equal(found[1].permute(0, 4, 3, 2, 1), expected[1])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_grids_are_computed_in_float32(dtype):
    density, semantics, origins, directions, index = case(30, 9, dtype=dtype)
    options = dict(step=0.1, grid_index=index)
    out = render_rays(density, semantics, origins, directions, LOWER, VOXEL, **options)
    singles = [value.detach().float().requires_grad_() for value in (density, semantics)]
    wanted = render_rays(*singles, origins.float(), directions.float(), LOWER, VOXEL, **options)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(out, wanted))
    for a, b in zip(gradients(out, (density, semantics)), gradients(wanted, singles)):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


@needs_extension
def test_autocast_computes_in_float32():
    density, semantics, origins, directions, index = case(9, 4)
    settings = (LOWER, VOXEL, 0.0, 9.0, 0.3, 0, 0.5, 1.0, -1.0, 1e-3, 0.0)
    low = semantics.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = torch.ops.occforge.volume_render(density, low, origins, directions, index, None, *settings)
    wanted = torch.ops.occforge.volume_render(density, low.float(), origins, directions, index, None, *settings)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(out, wanted))


@needs_extension
def test_second_derivatives_are_refused():
    density, semantics, origins, directions, index = case(9, 4)
    out = render_rays(density, semantics, origins, directions, LOWER, VOXEL, step=0.1, grid_index=index)
    (grad,) = torch.autograd.grad(out.depth.square().sum(), density, create_graph=True)
    with pytest.raises(NotImplementedError, match='differentiable once'):
        grad.sum().backward()


def test_rays_that_see_nothing():
    density, semantics, origins, directions, _ = case(4, 3, batch=1)
    for start, along in (
        (origins + 100, directions.abs()),
        (origins, directions * 0),
        (origins * math.nan, directions),
    ):
        out = render_rays(density, semantics, start, along, LOWER, VOXEL, step=0.1)
        assert not out.depth.any() and not out.semantics.any() and not out.distortion.any()
        assert out.transmittance.tolist() == [1.0] * 4
        assert not any(value.any() for value in gradients(out, (density, semantics)))
    offset = torch.zeros(3, dtype=torch.int64)
    out = render_samples(density, semantics, torch.zeros(0, 3), torch.zeros(0), offset)
    assert out.transmittance.tolist() == [1.0, 1.0]


@needs_extension
def test_nothing_of_the_size_of_the_samples_is_allocated():
    density, semantics, origins, directions, _ = case(500, 17, batch=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = render_rays(density, semantics, origins, directions, LOWER, VOXEL, samples=2000)
        gradients(out, (density, semantics))
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated < 500 * 2000  # a byte a sample


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@needs_extension
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='the system does not tell the resident memory')
@pytest.mark.skipif('libasan' in os.environ.get('LD_PRELOAD', ''), reason='AddressSanitizer holds freed memory back')
def test_five_hundred_steps_with_varying_rays_leave_nothing_behind():
    density, semantics, origins, directions, _ = case(4000, 17, (30, 30, 8), batch=1)

    def step(count):
        out = render_rays(density, semantics, origins[:count], directions[:count], LOWER, VOXEL, samples=50)
        gradients(out, (density, semantics))
        samples = sample_rays(*clip_rays(origins[:count], directions[:count], LOWER, [9.0, 9.0, 2.0]), step=0.1)
        weights, _ = alpha_to_weights(torch.full_like(samples.t, 0.01), samples.offset)
        accumulate(weights, samples.t, samples.offset)

    for number in range(20):
        step(4000 - number)
    before = resident_bytes()
    for number in range(500):
        step(1 + number * 7 % 3979)
    assert resident_bytes() - before < 32e6


@needs_extension
def test_thousand_corrupt_placements_give_errors():
    density, semantics, points, t, good_offset, good_index = packed(3, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for _ in range(1000):
        offset, index = good_offset.clone(), good_index.clone()
        broken = [offset, index][draw(2)]
        far = [-(2**63), -1, 2**31, 2**62, 2**63 - 1, len(t) + 1]
        broken[draw(len(broken))] = far[draw(len(far))]
        with pytest.raises(ValueError, match='must'):
            render_samples(density, semantics, points, t, offset, grid_index=index)


def test_bad_input():
    density, semantics, origins, directions, index = case(4, 3)

    def render(density=density, semantics=semantics, origins=origins, directions=directions, **options):
        options = dict(step=0.1, grid_index=index) | options
        return render_rays(density, semantics, origins, directions, LOWER, VOXEL, **options)

    for message, call in {
        'density must have shape': lambda: render(density=density[0]),
        'semantics must be of dtype': lambda: render(semantics=semantics.long()),
        'must agree in B, X, Y and Z': lambda: render(semantics=semantics[:, 1:]),
        'layout must be one of': lambda: render(layout='bxyz'),
        'must be as many': lambda: render(origins=origins[1:]),
        'grid_index must be given': lambda: render(grid_index=None),
        'grid_index must be in': lambda: render(grid_index=index + 2),
        'either step or samples': lambda: render(samples=3),
        'must be above 0': lambda: render(step=-1.0),
        'not above far': lambda: render(near=2.0, far=1.0),
        'unit must be': lambda: render(unit=0.0),
        'position must be': lambda: render(position=2.0),
        '2\\^24 samples': lambda: render(step=1e-9),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    density, semantics, points, t, offset, index = packed(3, torch.float32)
    for message, call in {
        'offset must ascend': lambda: render_samples(density, semantics, points, t, offset + 1, grid_index=index),
        'must be as many': lambda: render_samples(density, semantics, points[1:], t, offset, grid_index=index),
        'interval must be': lambda: render_samples(
            density, semantics, points, t, offset, interval=torch.rand(2), grid_index=index
        ),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_compile():
    density, semantics, origins, directions, index = case(20, 5)

    def render(density, semantics, seed):
        out = render_rays(density, semantics, origins, directions, LOWER, VOXEL, step=0.1, seed=seed, grid_index=index)
        return out.depth.sum() + out.semantics.square().sum() + out.transmittance.sum() + out.distortion.sum()

    seed = torch.tensor(3)
    out = torch.compile(render, fullgraph=True, backend='aot_eager')(density, semantics, seed)
    wanted = render(density, semantics, seed)
    assert torch.equal(out, wanted)
    for a, b in zip(*(torch.autograd.grad(value, (density, semantics)) for value in (out, wanted))):
        assert torch.equal(a, b)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('ignore')
from occforge.ops import render_rays
density, semantics = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.ones(1, 2, 1, 1, 1)
origins, directions = torch.tensor([[-1., .5, .5]]), torch.tensor([[1., 0, 0]])
out = render_rays(density, semantics, origins, directions, [0, 0, 0], [1, 1, 1], step=1.0)
out.transmittance.sum().backward()
print(*(round(float(value.sum()), 4) for value in (*out, density.grad)))
"""
    # alpha = 1/2 twice: t = 1.5, 2.5; distortion 2 / 8 + (1/4 + 1/16) / 3; dT / dd = -1/4 x 1/2 each
    assert run_without_extension(code).split() == ['1.375', '0.75', '0.25', '0.3542', '-0.25']
