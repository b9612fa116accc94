import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import deform_attn, depth_deform_attn, sample_depth
from occforge.ops.deform_attn import deform_attn_gather, deform_attn_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension
from torch.nn import functional as F


def case(images, queries, heads, channels, shapes, points, seed=0, dtype=torch.float64, spread=1.4):
    """Random values and queries whose places lie in and around the maps."""
    generator = torch.Generator().manual_seed(seed)
    sites = sum(height * width for height, width in shapes)
    value = torch.randn(images, sites, heads, channels, generator=generator, dtype=torch.float64)
    shape = (queries, heads, len(shapes), points)
    locations = 0.5 + (torch.rand(*shape, 2, generator=generator, dtype=torch.float64) - 0.5) * spread
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    sample = torch.randint(0, max(images, 1), (queries,), generator=generator)
    return *(tensor.to(dtype).requires_grad_() for tensor in (value, locations, weights)), sample


def flat(shapes):
    """The shapes as the operator takes them: h, w, h, w, ..."""
    return [side for pair in shapes for side in pair]


def run(value, locations, weights, sample, shapes):
    return deform_attn(value, shapes, locations, weights, sample)


def off_the_sites(locations, shapes, margin=1e-3):
    """(R, H, L, P, 1) whether a place is so far from a line of sites, where the slope jumps, that rounding cannot put
    it on the other side."""
    sizes = locations.new_tensor([[width, height] for height, width in shapes])[:, None]
    at = locations.detach() * sizes - 0.5
    return ((at - at.round()).abs() > margin).all(-1, keepdim=True)


def test_hand_numbers():
    # One image of two levels: 1 x 2 sites holding 2 and 6, 2 x 1 sites holding 10 and 30; one head of one channel.
    value = torch.tensor([2.0, 6.0, 10.0, 30.0]).view(1, 4, 1, 1).requires_grad_()
    # Level 0: u = 0.5 is x = 0.5, half of each site; v = 0.5 is y = 0. Level 1: v = 1 is y = 1.5, half of the last row.
    locations = torch.tensor([[0.5, 0.5], [0.5, 1.0]]).view(1, 1, 2, 1, 2).requires_grad_()
    weights = torch.tensor([3.0, 0.5]).view(1, 1, 2, 1).requires_grad_()
    out = deform_attn(value, [(1, 2), (2, 1)], locations, weights, torch.tensor([0]))
    assert out.tolist() == [[3 * (1 + 3) + 0.5 * 15]]
    out.backward()
    assert value.grad.flatten().tolist() == [1.5, 1.5, 0, 0.25]
    assert weights.grad.flatten().tolist() == [4, 15]
    # level 0: d/du = weight * width * (6 - 2), d/dv: at y = 0, between 4 and nothing below: 3 * 1 * -4
    # level 1: d/du = at x = 0, between 15 and nothing: 0.5 * 1 * -15; d/dv: 0.5 * 2 * -30
    assert locations.grad.view(2, 2).tolist() == [[24, -12], [-7.5, -30]]


@pytest.mark.parametrize('queries', [0, 1, 30])
@pytest.mark.parametrize('spread', [0.5, 4.0, 1e6])
def test_the_form_of_exported_graphs(queries, spread):
    shapes = [(3, 5), (1, 1), (4, 2)]
    inputs = case(3, queries, 2, 3, shapes, 4, seed=1, spread=spread)
    with torch.no_grad():
        found, expected = (form(*inputs, flat(shapes)) for form in (deform_attn_gather, deform_attn_reference))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    images=st.integers(1, 4),
    queries=st.integers(0, 9),
    heads=st.integers(1, 4),
    channels=st.integers(1, 20),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=3),
    points=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.5, 1.4, 4.0, 1e6]),
)
def test_equals_reference(images, queries, heads, channels, shapes, points, seed, spread):
    inputs = case(images, queries, heads, channels, shapes, points, seed, torch.float32, spread)
    with torch.no_grad():
        inputs[1].view(-1)[: seed % 3] = [float('nan'), float('inf'), -float('inf')][seed % 3]
    out = run(*inputs, shapes)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs[:3]]
    wanted = deform_attn_reference(*exact, inputs[3], flat(shapes))
    assert out.shape == (queries, heads * channels)
    check_fake('deform_attn', *(tensor.detach() for tensor in inputs), flat(shapes))
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-4)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(out, inputs[:3], upstream)
    wanted = torch.autograd.grad(wanted, exact, upstream.double())
    clear = off_the_sites(inputs[1], shapes)
    for a, b, mask in zip(found, wanted, (1, clear, 1)):
        b = torch.where(b.isfinite(), b, 0)  # a place that is no number has no slope
        torch.testing.assert_close((a * mask).double(), b * mask, rtol=1e-4, atol=1e-3)


def test_reference_equals_grid_sample_of_each_query():
    """The reference itself, against one grid_sample a query."""
    shapes = [(3, 5), (2, 2)]
    value, locations, weights, sample = case(3, 6, 2, 4, shapes, 3)
    wanted = torch.zeros(6, 2, 4, dtype=torch.float64)
    for r in range(6):
        for h in range(2):
            for level, (height, width) in enumerate(shapes):
                start = 0 if level == 0 else 15
                features = value[sample[r], start : start + height * width, h].t().view(1, 4, height, width)
                found = F.grid_sample(features, 2 * locations[r, h, level].view(1, 1, 3, 2) - 1, align_corners=False)
                wanted[r, h] += found[0, :, 0] @ weights[r, h, level]
    out = deform_attn_reference(value, locations, weights, sample, flat(shapes))
    torch.testing.assert_close(out.view(6, 2, 4), wanted)


def test_queries_of_each_image_in_turn():
    shapes = [(4, 3)]
    value, locations, weights, _ = case(2, 10, 2, 5, shapes, 4)
    sample = torch.tensor([0] * 5 + [1] * 5)
    out = deform_attn(value, shapes, locations.view(2, 5, *locations.shape[1:]), weights.view(2, 5, 2, 1, 4))
    assert out.shape == (2, 5, 10)
    assert torch.equal(out.flatten(0, 1), run(value, locations, weights, sample, shapes))
    shuffle = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = run(value, locations[shuffle], weights[shuffle], sample[shuffle], shapes)
    assert torch.equal(shuffled, out.flatten(0, 1)[shuffle])


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    shapes = [[(2, 3)], [(3, 2), (1, 4)], [(1, 1)]][seed % 3]
    value, locations, weights, sample = case(1 + seed % 2, 3, 1 + seed % 3, 1 + seed % 4, shapes, 2, seed)
    locations = torch.where(off_the_sites(locations, shapes), locations, 0.6).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: run(*x, sample, shapes), (value, locations, weights))


@needs_extension
def test_differentiates_once():
    value, locations, weights, sample = case(1, 2, 1, 3, [(2, 2)], 1)
    out = run(value, locations, weights, sample, [(2, 2)])
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiated once'):
        grad.sum().backward()


@needs_extension
@pytest.mark.parametrize('seed', range(10))
def test_opcheck(seed):
    shapes = [[(2, 3)], [(3, 2), (1, 4)]][seed % 2]
    inputs = case(2, [3, 0, 1][seed % 3], 2, 1 + seed, shapes, 2, seed)
    sides, ops = flat(shapes), torch.ops.occforge
    torch.library.opcheck(ops.deform_attn.default, (*inputs, sides), test_utils=OPCHECK_TESTS)
    grad = torch.randn(ops.deform_attn(*inputs, sides).shape, dtype=torch.float64)
    arguments = (grad, *(tensor.detach() for tensor in inputs), sides)
    torch.library.opcheck(ops.deform_attn_backward.default, arguments, test_utils=OPCHECK_TESTS)


def test_empty_single_and_degenerate():
    for images, queries, heads, channels, points in (
        (0, 0, 2, 3, 2),
        (2, 0, 2, 3, 2),
        (1, 1, 1, 1, 1),
        (2, 3, 2, 0, 2),
        (2, 3, 2, 3, 0),
        (1, 2, 0, 3, 2),
    ):
        inputs = case(images, queries, heads, channels, [(2, 3)], points)
        out = run(*inputs, [(2, 3)])
        assert out.shape == (queries, heads * channels)
        out.sum().backward()
        assert all(tensor.grad.shape == tensor.shape for tensor in inputs[:3])
    value, locations, weights, sample = case(2, 5, 2, 3, [(4, 4)], 3)
    for places in (locations.detach() + 5, torch.full_like(locations, float('nan'))):  # nothing of the map is met
        places.requires_grad_()
        out = run(value, places, weights, sample, [(4, 4)])
        assert not out.any()
        assert not any(grad.any() for grad in torch.autograd.grad(out.sum(), (value, places, weights)))
    # values that nobody reads do not leak, also where a footprint lies half outside
    with torch.no_grad():
        value[0] = float('nan')
    places = torch.zeros_like(locations)
    out = run(value, places, weights, torch.ones_like(sample), [(4, 4)])
    assert out.isfinite().all()
    # a hundred thousand queries at one place
    out = run(value[1:].float(), places[:1, :, :, :1].expand(100_000, -1, -1, -1, -1).float() + 0.5,
              torch.ones(100_000, 2, 1, 1), torch.zeros(100_000, dtype=torch.int64), [(4, 4)])  # fmt: skip
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_sums_in_float32(dtype):
    shapes = [(5, 7)]
    inputs = case(2, 30, 2, 16, shapes, 8, dtype=dtype)
    out = run(*inputs, shapes)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs[:3]]
    wanted = deform_attn_reference(*exact, inputs[3], flat(shapes))
    assert out.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), wanted, rtol=rounding, atol=1e-4)
    upstream = torch.randn(out.shape).to(dtype)
    found = torch.autograd.grad(out, inputs[:3], upstream)
    wanted = torch.autograd.grad(wanted, exact, upstream.double())
    clear = off_the_sites(inputs[1].double(), shapes)
    for a, b, mask in zip(found, wanted, (1, clear, 1)):
        assert a.dtype == dtype
        torch.testing.assert_close((a * mask).double(), b * mask, rtol=rounding, atol=1e-3)


@needs_extension
def test_autocast_computes_in_float32():
    shapes = [(5, 7)]
    value, locations, weights, sample = case(2, 30, 2, 16, shapes, 8, dtype=torch.float32)
    expected = run(value.bfloat16().float(), locations, weights, sample, shapes)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = run(value.bfloat16(), locations, weights, sample, shapes)
    assert out.dtype == torch.float32 and torch.equal(out, expected)


def test_memory_layout_threads_and_repeats():
    shapes = [(9, 7), (4, 4)]
    inputs = case(3, 400, 4, 11, shapes, 5, dtype=torch.float32)
    out = run(*inputs, shapes)
    upstream = torch.randn(out.shape)
    expected = torch.autograd.grad(out, inputs[:3], upstream)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for _ in range(7):
                strange = [awkward(tensor) for tensor in inputs]
                found = run(*strange, shapes)
                assert torch.equal(found, out)
                found = torch.autograd.grad(found, strange[:3], awkward(upstream))
                assert all(torch.equal(a, b) for a, b in zip(found, expected))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('listed', [False, True])
def test_sample_depth_reads_one_bin(listed):
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(3, 6, 4, 5, generator=generator, dtype=torch.float64).softmax(1).requires_grad_()
    points = torch.rand(3, 7, 2, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    bins = torch.randint(-1, 7, (3, 7, 2), generator=generator)
    if listed:
        found = sample_depth(depth, points.flatten(0, 1), bins.flatten(0, 1), torch.arange(3).repeat_interleave(7))
        found = found.view(3, 7, 2)
    else:
        found = sample_depth(depth, points, bins)
    every = F.grid_sample(depth, 2 * points - 1, align_corners=False).permute(0, 2, 3, 1)  # (3, 7, 2, bins)
    hot = F.one_hot(bins + 1, 8)[..., 1:7]  # a bin that does not exist: no weight
    wanted = (every * hot).sum(-1)
    torch.testing.assert_close(found, wanted)
    grads = (torch.autograd.grad(value.square().sum(), depth)[0] for value in (found, wanted))
    torch.testing.assert_close(*grads)


def test_depth_aware_form():
    shapes = [(4, 5)]
    value, locations, weights, sample = case(3, 8, 2, 3, shapes, 6)
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(3, 6, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    anchors = torch.rand(8, 3, 2, generator=generator, dtype=torch.float64)
    bins = torch.randint(0, 6, (8, 3), generator=generator)
    out = depth_deform_attn(value, shapes, locations, weights, depth, anchors, bins, sample)
    probable = sample_depth(depth, anchors, bins, sample)
    wanted = run(value, locations, weights * probable[:, [0, 1, 2, 0, 1, 2]][:, None, None], sample, shapes)
    torch.testing.assert_close(out, wanted)
    out.sum().backward()
    assert depth.grad.any() and weights.grad.any()
    one_a_image = depth_deform_attn(
        value, shapes, *(x.view(1, 8, *x.shape[1:]).expand(3, *(-1,) * x.ndim) for x in (locations, weights)), depth,
        *(x[None].expand(3, *(-1,) * x.ndim) for x in (anchors, bins)),
    )  # fmt: skip
    torch.testing.assert_close(one_a_image[sample, torch.arange(8)], out)


def test_bad_input():
    shapes = [(4, 5)]
    value, locations, weights, sample = case(3, 8, 2, 3, shapes, 6)
    anchors, bins = torch.zeros(8, 4, 2), torch.zeros(8, 4, dtype=torch.int64)
    depth = torch.zeros(3, 6, 4, 5)
    for message, call in {
        'value must have shape': lambda: deform_attn(value[0], shapes, locations, weights, sample),
        'value must be of dtype': lambda: deform_attn(value.long(), shapes, locations, weights, sample),
        'locations must have shape': lambda: deform_attn(value, shapes, locations, weights),
        'weights must have shape': lambda: deform_attn(value, shapes, locations, weights[:, :1], sample),
        'for 2 heads': lambda: deform_attn(value, shapes, locations[:, :1], weights[:, :1], sample),
        'shapes must have 1': lambda: deform_attn(value, [(2, 5), (2, 5)], locations, weights, sample),
        'do not sum to the 20 sites': lambda: deform_attn(value, [(4, 6)], locations, weights, sample),
        'shapes must be above 0': lambda: deform_attn(value, [(-4, -5)], locations, weights, sample),
        'sample must be of dtype': lambda: deform_attn(value, shapes, locations, weights, sample.int()),
        'sample must have 8': lambda: deform_attn(value, shapes, locations, weights, sample[:3]),
        'sample must be in 0': lambda: deform_attn(value, shapes, locations, weights, sample - 2),
        'for 3 images': lambda: deform_attn(value, shapes, locations[None], weights[None]),
        'depth must have shape': lambda: sample_depth(depth[0], anchors, bins, sample),
        'bins must have shape': lambda: sample_depth(depth, anchors, bins[:, :2], sample),
        'bins must be of dtype': lambda: sample_depth(depth, anchors, bins.float(), sample),
        'points must be given for 3 images': lambda: sample_depth(depth, anchors[None], bins[None]),
        'a multiple of 4 points': lambda: depth_deform_attn(
            value, shapes, locations, weights, depth, anchors, bins, sample
        ),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_thousand_corrupt_calls_of_the_operator_give_errors():
    generator = torch.Generator().manual_seed(0)
    *good, sample = (tensor.detach() for tensor in case(3, 8, 2, 3, [(4, 5), (1, 2)], 6))

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for _ in range(1000):
        arguments, shapes, images = list(good), [4, 5, 1, 2], sample.clone()
        how = draw(5)
        if how == 0:
            images[draw(8)] = [-1, 3, 2**31, -(2**63), 2**63 - 1][draw(5)]
        elif how == 1:
            shapes[draw(4)] = [0, -1, 3, 2**40, 2**62][draw(5)]
        elif how == 2:
            shapes = shapes[: draw(4)]
        elif how == 3:
            place = draw(3)
            arguments[place] = arguments[place].flatten(draw(2) + 1)
        else:
            place = draw(3)
            arguments[place] = arguments[place].to([torch.float32, torch.int64][draw(2)])
        with pytest.raises((ValueError, TypeError)):
            torch.ops.occforge.deform_attn(*arguments, images, shapes)
        with pytest.raises((ValueError, TypeError)):
            torch.ops.occforge.deform_attn_backward(torch.ones(8, 6, dtype=torch.float64), *arguments, images, shapes)


@needs_extension
def test_compile():
    shapes = [(4, 5)]
    value, locations, weights, sample = case(3, 8, 2, 3, shapes, 6)
    depth = torch.rand(3, 6, 4, 5, dtype=torch.float64).requires_grad_()
    anchors, bins = torch.rand(8, 3, 2, dtype=torch.float64), torch.randint(0, 6, (8, 3))

    def attend(value, locations, weights, depth):
        return depth_deform_attn(value, shapes, locations, weights, depth, anchors, bins, sample)

    inputs = (value, locations, weights, depth)
    out = torch.compile(attend, fullgraph=True, backend='aot_eager')(*inputs)
    torch.testing.assert_close(out, attend(*inputs), rtol=0, atol=0)
    found = torch.autograd.grad(out.square().sum(), inputs)
    wanted = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    from occforge.ops import deform_attn, has_extension, sample_depth
    value = torch.tensor([2., 6.]).view(1, 2, 1, 1).requires_grad_()
    places = torch.full((1, 1, 1, 1, 2), .5)
    out = deform_attn(value, [(1, 2)], places, torch.full((1, 1, 1, 1), 3.), torch.tensor([0]))
    out.backward()
    depth, centre = torch.tensor([.25, .75]).view(1, 2, 1, 1), torch.full((1, 1, 1, 2), .5)
    seen = sample_depth(depth, centre, torch.ones(1, 1, 1).long())
print(has_extension(), out.item(), *value.grad.flatten().tolist(), seen.item())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['False', '12.0', '1.5', '1.5', '0.75', '1']
