import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import (
    accumulate,
    alpha_to_weights,
    binary_entropy,
    density_to_alpha,
    distortion,
    ray_offsets,
    shift_for_alpha,
)
from occforge.ops.compositing import (
    accumulate_reference,
    alpha_to_weights_reference,
    density_to_alpha_reference,
    distortion_reference,
)
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension


def packed(rays, longest, seed=0, dtype=torch.float32, columns=3):
    """Opacities, places and values of rays with 0..longest samples."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, longest + 1, (rays,), generator=generator)
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    samples = int(offset[-1])
    alpha = torch.rand(samples, generator=generator, dtype=torch.float64) ** 3
    alpha[torch.rand(samples, generator=generator) < 0.05] = 1
    ray = torch.repeat_interleave(torch.arange(rays), counts)
    t = torch.rand(samples, generator=generator, dtype=torch.float64)
    t = (t + 10 * ray)[torch.argsort(t + 10 * ray)] - 10 * ray  # ascending along each ray
    values = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    alpha, t, values = (value.to(dtype) for value in (alpha, t, values))
    return alpha.requires_grad_(), t, values.requires_grad_(), offset


def test_hand_numbers():
    alpha = torch.tensor([0.5, 0.5, 0.5, 1.0, 0.25], requires_grad=True)
    offset = torch.tensor([0, 3, 3, 5])
    weights, last = alpha_to_weights(alpha, offset)
    assert weights.tolist() == [0.5, 0.25, 0.125, 1.0, 0.0] and last.tolist() == [0.125, 1.0, 0.0]
    assert alpha_to_weights(alpha, offset, stop=0.3)[0].tolist() == [0.5, 0.25, 0.0, 1.0, 0.0]
    assert alpha_to_weights(alpha, offset, stop=0.3)[1].tolist() == [0.25, 1.0, 0.0]
    # d(0.5 w0 + w2) / d alpha: w0 = a0, w2 = (1 - a0)(1 - a1) a2
    (found,) = torch.autograd.grad(weights, alpha, torch.tensor([0.5, 0.0, 1.0, 0.0, 1.0]))
    assert found.tolist() == [0.25, -0.25, 0.25, -0.25, 0.0]  # behind alpha = 1: 0; its own: -1 x 0.25

    t = torch.tensor([1.0, 2.0, 4.0, 1.0, 5.0])
    assert accumulate(weights, t, offset).tolist() == [1.5, 0.0, 1.0]
    # 2 (0.5 x 0.25 x 1 + 0.5 x 0.125 x 3 + 0.25 x 0.125 x 2) = 0.75, and (0.25 + 0.0625 + 0.015625) / 3 x 3
    assert distortion(weights, t, offset).tolist() == [0.75, 0.0, 0.0]
    assert distortion(weights, t, offset, width=3.0).tolist() == [1.078125, 0.0, 1.0]

    assert density_to_alpha(torch.tensor([0.0])).item() == pytest.approx(0.5)  # 1 - (1 + 1)^-1
    assert density_to_alpha(torch.tensor([math.log(3.0)]), interval=0.5).item() == pytest.approx(0.5)  # 1 - 4^-1/2
    assert density_to_alpha(torch.tensor([0.0]), shift_for_alpha(1e-6)).item() == pytest.approx(1e-6, rel=1e-6)
    assert binary_entropy(torch.tensor([0.5, 0.0, 1.0])).tolist() == pytest.approx([math.log(2), 0, 0], abs=2e-5)
    assert ray_offsets(torch.tensor([0, 0, 2]), 4).tolist() == [0, 2, 2, 3, 3]


def test_density_is_exact_everywhere():
    """Relative to double precision, from alpha of 1e-30 to densities that overflow e^d."""
    density = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([-80.0, 88.0, 1e3, 1e30])])
    for interval in (1e-3, 0.5, 1.0, 7.0):
        exact = density.double().requires_grad_()
        wanted = density_to_alpha_reference(exact, torch.tensor([interval], dtype=torch.float64), -3.0)
        single = density.clone().requires_grad_()
        found = density_to_alpha(single, -3.0, torch.tensor(interval, dtype=torch.float64))
        rounding = 1e-6 + 6e-8 * density.abs().clamp(max=80).double()  # density + shift is rounded once
        assert ((found.double() - wanted).abs() <= rounding * wanted + 1e-37).all()
        (found,) = torch.autograd.grad(found.sum(), single)
        (wanted,) = torch.autograd.grad(wanted.sum(), exact)
        opaque = 2e-7 * interval * (density.double() - 3).sigmoid()  # 1 - alpha is known to one part of 2^24 of 1
        assert ((found.double() - wanted).abs() <= rounding * wanted.abs() + opaque + 1e-37).all()
    assert density_to_alpha(torch.tensor([math.nan])).isnan().all()
    assert density_to_alpha(torch.tensor([math.inf, -math.inf])).tolist() == pytest.approx([1.0, 0.0], abs=1e-30)


@settings(max_examples=200, deadline=None)
@given(
    rays=st.integers(0, 12),
    longest=st.integers(0, 40),
    columns=st.integers(0, 20),
    seed=st.integers(0, 2**31),
    stop=st.sampled_from([0.0, 1e-3, 0.4]),
)
def test_equals_reference(rays, longest, columns, seed, stop):
    alpha, t, values, offset = packed(rays, longest, seed, columns=columns)
    width = torch.rand(len(t)) if seed % 2 and len(t) else torch.tensor([0.1])
    generator = torch.Generator().manual_seed(seed)

    def compare(found, wanted, inputs):
        found, wanted = (value if isinstance(value, tuple) else (value,) for value in (found, wanted))
        upstream = [torch.randn(value.shape, generator=generator) for value in found]
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        if rays == 0:
            return
        found = torch.autograd.grad(found, inputs, upstream)
        wanted = torch.autograd.grad(wanted, inputs, upstream, materialize_grads=True, allow_unused=True)
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)

    found = alpha_to_weights(alpha, offset, stop)
    compare(found, alpha_to_weights_reference(alpha, offset, stop), (alpha,))
    weights, last = found
    totals = torch.zeros(rays).index_add(0, torch.arange(rays).repeat_interleave(offset.diff()), weights.detach())
    torch.testing.assert_close(totals + last.detach(), torch.ones(rays), rtol=0, atol=1e-5)
    assert ((weights >= 0) & (weights <= 1)).all()
    weights = weights.detach().requires_grad_()
    compare(accumulate(weights, values, offset), accumulate_reference(weights, values, offset), (weights, values))
    compare(distortion(weights, t, offset, width), distortion_reference(weights, t, width, offset), (weights,))
    check_fake('alpha_weights', alpha.detach(), offset, stop)
    check_fake('ray_sum', weights.detach(), values.detach(), offset)
    check_fake('ray_distortion', weights.detach(), t, width, offset)
    density = (values.detach().flatten() * 20).requires_grad_()
    interval = torch.rand(1)
    check_fake('density_alpha', density.detach(), interval, 1.0)
    compare(density_to_alpha(density, 1.0, interval), density_to_alpha_reference(density, interval, 1.0), (density,))


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    alpha, t, values, offset = packed(1 + seed % 4, 6, seed, torch.float64, columns=1 + seed % 3)
    alpha = (alpha.detach() * 0.9).requires_grad_()
    stop = [0.0, 0.2][seed % 2]
    assert torch.autograd.gradcheck(lambda a: alpha_to_weights(a, offset, stop), (alpha,))
    assert torch.autograd.gradcheck(lambda w, v: accumulate(w, v, offset), (alpha, values))
    assert torch.autograd.gradcheck(lambda w: distortion(w, t, offset, 0.3), (alpha,))
    assert torch.autograd.gradcheck(lambda d: density_to_alpha(d, -0.5, 0.7), (values * 3,))


@needs_extension
@pytest.mark.parametrize('seed', range(3))
def test_opcheck(seed):
    alpha, t, values, offset = packed([0, 1, 4][seed], 5, seed)
    ops, width = torch.ops.occforge, torch.tensor([0.5])
    rays = len(offset) - 1
    flat = values.detach().flatten().requires_grad_()
    grad, rows = torch.randn(rays), torch.randn(rays, values.shape[1])
    for operator, arguments in (
        (ops.density_alpha, (flat, width, 0.5)),
        (ops.density_alpha_backward, (torch.randn_like(flat), flat.detach(), width, 0.5)),
        (ops.alpha_weights, (alpha, offset, 0.01)),
        (ops.alpha_weights_backward, (torch.randn_like(alpha), grad, alpha.detach(), offset, 0.01)),
        (ops.ray_sum, (alpha, values, offset)),
        (ops.ray_sum_backward, (rows, alpha.detach(), values.detach(), offset)),
        (ops.ray_distortion, (alpha, t, width, offset)),
        (ops.ray_distortion_backward, (grad, alpha.detach(), t, width, offset)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=OPCHECK_TESTS)


@needs_extension
def test_second_derivatives_are_refused():
    alpha, _, _, offset = packed(3, 5)
    (grad,) = torch.autograd.grad(alpha_to_weights(alpha, offset)[0].square().sum(), alpha, create_graph=True)
    with pytest.raises(NotImplementedError, match='differentiable once'):
        grad.sum().backward()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    alpha, t, values, offset = packed(5, 9, 1, dtype)
    weights, last = alpha_to_weights(alpha, offset)
    assert weights.dtype == last.dtype == torch.float32
    assert torch.equal(weights, alpha_to_weights(alpha.float(), offset)[0])
    out = accumulate(weights, values, offset)
    assert out.dtype == torch.float32 and torch.equal(out, accumulate(weights, values.float(), offset))
    assert distortion(weights, t, offset).dtype == density_to_alpha(values).dtype == torch.float32
    out.sum().backward()
    assert alpha.grad.dtype == values.grad.dtype == dtype


@needs_extension
def test_autocast_computes_in_float32():
    alpha, _, values, offset = packed(5, 9, 1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = torch.ops.occforge.ray_sum(alpha, values.bfloat16(), offset)
    assert out.dtype == torch.float32 and torch.equal(out, accumulate(alpha, values.bfloat16().float(), offset))


def test_memory_layout_threads_and_repeats():
    alpha, t, values, offset = packed(300, 50, 2)

    def run(alpha, t, values, offset):
        weights, last = alpha_to_weights(alpha, offset, 1e-3)
        parts = last.sum() + accumulate(weights, values, offset).square().sum() + distortion(weights, t, offset).sum()
        return weights, last, *torch.autograd.grad(parts, (alpha, values))

    expected = run(alpha, t, values, offset)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for _ in range(7):
                found = run(*(awkward(value) for value in (alpha, t, values, offset)))
                assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2]))
                for a, b in zip(found[2:], expected[2:]):
                    torch.testing.assert_close(a, b, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


def test_a_ray_of_a_hundred_thousand_samples():
    t = torch.linspace(0, 1, 100_000)
    offset = torch.tensor([0, len(t)])
    alpha = torch.full_like(t, 2**-13)  # 1 - alpha is exact
    weights, last = alpha_to_weights(alpha, offset)
    torch.testing.assert_close(weights.sum() + last[0], torch.tensor(1.0), rtol=0, atol=1e-4)
    wanted, _ = alpha_to_weights(alpha.double(), offset)
    torch.testing.assert_close(
        distortion(weights, t, offset), distortion(wanted, t.double(), offset), rtol=1e-3, atol=0, check_dtype=False
    )


@needs_extension
def test_thousand_corrupt_offsets_give_errors():
    generator = torch.Generator().manual_seed(0)
    alpha, t, values, good = packed(6, 9, 3)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for _ in range(1000):
        offset, how = good.clone(), draw(4)
        if how == 0:
            offset[draw(len(offset))] = [-(2**63), -1, 2**31, 2**62, len(alpha) + 1][draw(5)]
        elif how == 1:
            offset = offset[: draw(len(offset))]
            if offset.numel() and offset[-1] == len(alpha):
                continue
        elif how == 2:
            offset = offset.to([torch.int32, torch.float32][draw(2)])
        else:
            offset = offset[torch.randperm(len(offset), generator=generator)]
            if bool((offset.diff() >= 0).all()):
                continue
        for call in (
            partial(alpha_to_weights, alpha),
            partial(accumulate, alpha, values),
            partial(distortion, alpha, t),
        ):
            with pytest.raises((ValueError, TypeError)):
                call(offset)


def test_bad_input():
    alpha, t, values, offset = packed(4, 5)
    for message, call in {
        'alpha must have shape': lambda: alpha_to_weights(alpha[None], offset),
        'alpha must be of dtype': lambda: alpha_to_weights(alpha.long(), offset),
        'offset must have shape': lambda: alpha_to_weights(alpha, offset[None]),
        'offset must ascend': lambda: alpha_to_weights(alpha, offset + 1),
        'values must have': lambda: accumulate(alpha, values[1:], offset),
        't must be of the shape': lambda: distortion(alpha, t[1:], offset),
        'width must be one number': lambda: distortion(alpha, t, offset, torch.rand(2)),
        'interval must be one number': lambda: density_to_alpha(alpha, 0.0, torch.rand(2)),
        'alpha must be in': lambda: shift_for_alpha(1.0),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_compile():
    _, t, values, offset = packed(5, 9, 1)

    def render(density, t, values):
        weights, last = alpha_to_weights(density_to_alpha(density, -1.0, 0.5), offset, 1e-3)
        return accumulate(weights, values, offset).sum() + last.sum() + distortion(weights, t, offset).sum()

    density = torch.randn(len(t), requires_grad=True)
    out = torch.compile(render, fullgraph=True, backend='aot_eager')(density, t, values)
    wanted = render(density, t, values)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    for a, b in zip(torch.autograd.grad(out, (density, values)), torch.autograd.grad(wanted, (density, values))):
        assert torch.equal(a, b)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('ignore')
from occforge.ops import accumulate, alpha_to_weights, density_to_alpha, distortion
offset = torch.tensor([0, 2, 2])
weights, last = alpha_to_weights(density_to_alpha(torch.zeros(2)), offset)
t = torch.tensor([1., 2.])
print(*weights.tolist(), *last.tolist())
print(*accumulate(weights, t, offset).tolist(), *distortion(weights, t, offset).tolist())
"""
    assert run_without_extension(code).split() == ['0.5', '0.25', '0.25', '1.0', '1.0', '0.0', '0.25', '0.0']
