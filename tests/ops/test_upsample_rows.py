"""Trilinear upsampling at chosen voxels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import upsample_rows
from occforge.ops.upsample_rows import upsample_rows_reference
from op_testing import awkward, check_fake, needs_extension, run_without_extension


def case(size, channels, scale, count, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(*size, channels, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    fine = size[0] * size[1] * size[2] * size[3] * scale**3
    return volume, torch.randint(0, max(fine, 1), (count if fine else 0,), generator=generator)


def test_hand_numbers():
    # two voxels along x, 1 and 5: the four fine centres lie at -1/4, 1/4, 3/4, 5/4, cut off to 0 and 1
    volume = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2, 1).requires_grad_()
    rows = torch.tensor([0, 1, 2, 3, 1])
    # factor 2 along z and y too: rows of the first of their four lines
    out = upsample_rows(volume, rows, 2)
    assert out.flatten().tolist() == [1, 2, 4, 5, 2]
    out.backward(torch.tensor([[1.0], [10], [100], [1000], [0]]))
    # 1 + 3/4 10 + 1/4 100 and 1/4 10 + 3/4 100 + 1000
    assert volume.grad.flatten().tolist() == [33.5, 1077.5]


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(0, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 40),
    scale=st.integers(1, 4),
    count=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_equals_reference(size, channels, scale, count, seed):
    volume, rows = case(size, channels, scale, count, seed)
    out = upsample_rows(volume, rows, scale)
    (gradient,) = torch.autograd.grad(out.cos().sum(), volume)
    expected = upsample_rows_reference(volume, rows, scale)
    (expected_gradient,) = torch.autograd.grad(expected.cos().sum(), volume)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=2e-5)
    check_fake('upsample_rows', volume.detach(), rows, scale)


def test_the_reference_is_interpolate():
    volume, rows = case((2, 3, 4, 5), 7, 3, 500, 0)
    whole = F.interpolate(volume.permute(0, 4, 1, 2, 3), scale_factor=3, mode='trilinear', align_corners=False)
    b, z, y, x = torch.unravel_index(rows, (2, 9, 12, 15))
    assert torch.equal(upsample_rows_reference(volume, rows, 3), whole[b, :, z, y, x])


@pytest.mark.parametrize('seed', range(20))
def test_gradcheck(seed):
    size = [(1, 2, 3, 2), (2, 1, 1, 4), (1, 3, 1, 1)][seed % 3]
    volume, rows = case(size, 1 + seed % 4, 1 + seed % 3, seed, seed, torch.float64)
    assert torch.autograd.gradcheck(lambda x: upsample_rows(x, rows, 1 + seed % 3), (volume,))
    assert torch.autograd.gradgradcheck(lambda x: upsample_rows(x, rows, 1 + seed % 3) ** 2, (volume,))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    volume, rows = case((2, 4, 5, 6), 24, 2, 3000, 1, dtype)
    out = upsample_rows(volume, rows, 2)
    exact = upsample_rows(volume.float(), rows, 2)
    assert out.dtype == dtype
    assert ((out.float() - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()
    upstream = torch.randn(3000, 24).to(dtype)
    (gradient,) = torch.autograd.grad(out, volume, upstream)
    wide = volume.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(upsample_rows(wide, rows, 2), wide, upstream.float())
    assert gradient.dtype == dtype
    assert ((gradient.float() - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()


def test_autocast():
    volume, rows = case((1, 2, 2, 2), 3, 2, 9, 0, torch.bfloat16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert upsample_rows(volume, rows, 2).dtype == torch.float32


def test_degenerate_and_awkward():
    for size, count in (((0, 1, 1, 1), 0), ((1, 1, 1, 1), 1), ((1, 2, 2, 2), 0)):
        volume, rows = case(size, 3, 2, count, 0)
        out = upsample_rows(volume, rows, 2)
        assert out.shape == (count, 3)
        out.sum().backward()
        assert torch.isfinite(volume.grad).all()
    volume, _ = case((1, 2, 3, 4), 5, 2, 0, 0)
    rows = torch.full((100_000,), 77)  # one place, a hundred thousand times
    out = upsample_rows(volume, rows, 2)
    out.sum().backward()
    assert volume.grad.sum().item() == pytest.approx(500_000, rel=1e-5)
    rows = torch.arange(192).flip(0)
    (gradient,) = torch.autograd.grad(upsample_rows(volume, rows, 2).sin().sum(), volume)
    strange = awkward(volume.detach()).requires_grad_()
    (again,) = torch.autograd.grad(upsample_rows(strange, awkward(rows), 2).sin().sum(), strange)
    assert torch.equal(gradient, again)


def test_all_rows_conserve_the_sum():
    """Weights of a row sum to 1, so that the gradient of the sum of all rows is their number."""
    volume, _ = case((2, 3, 4, 5), 2, 3, 0, 0)
    rows = torch.arange(2 * 3 * 4 * 5 * 27)
    upsample_rows(volume, rows, 3).sum().backward()
    assert volume.grad.sum().item() == pytest.approx(2 * len(rows), rel=1e-5)
    assert torch.allclose(upsample_rows(torch.ones(2, 3, 4, 5, 2), rows, 3), torch.ones(len(rows), 2))


def test_wrong_arguments():
    volume, rows = case((1, 2, 2, 2), 3, 2, 4, 0)
    for error, word, call in (
        (TypeError, 'volume must be a tensor', lambda: upsample_rows([1], rows, 2)),
        (ValueError, r'\(B, Z, Y, X, C\)', lambda: upsample_rows(volume[0], rows, 2)),
        (TypeError, 'rows must be of dtype int64', lambda: upsample_rows(volume, rows.int(), 2)),
        (ValueError, r'rows must have shape \(V,\)', lambda: upsample_rows(volume, rows[None], 2)),
        (ValueError, 'scale_factor', lambda: upsample_rows(volume, rows, 0)),
        (ValueError, 'scale_factor', lambda: upsample_rows(volume, rows, 2.0)),
        (ValueError, r'rows must be in 0\.\.63, found 64', lambda: upsample_rows(volume, rows * 0 + 64, 2)),
        (ValueError, r'rows must be in 0\.\.63, found -1', lambda: upsample_rows(volume, rows * 0 - 1, 2)),
    ):
        with pytest.raises(error, match=word):
            call()
    for wrong in (64, -1):
        with pytest.raises(ValueError, match=rf'rows must be in 0\.\.63, found {wrong}'):
            upsample_rows_reference(volume, rows * 0 + wrong, 2)


@needs_extension
def test_thousand_corrupt_calls_of_the_operator_give_errors():
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    for _ in range(1000):
        volume, rows = case((1, 2, 3, 2), 3, 2, 8, draw(1000))
        volume, scale = volume.detach(), 2
        what = draw(5)
        if what == 0:
            rows[draw(8)] = [-(2**63), -2, -1, 96, 97, 2**31, 2**62, 2**63 - 1][draw(8)]
        elif what == 1:
            rows = [rows.int(), rows.float(), rows[None], rows[0]][draw(4)]
        elif what == 2:
            volume = [volume[0], volume.long(), volume[None], volume.to(torch.complex64)][draw(4)]
        elif what == 3:
            scale = [0, -1, 65, 2**31, -(2**63)][draw(5)]
        else:
            grad = torch.randn(8 if draw(2) else 7, 3)
            sizes = [1, 2, 3, 2] if len(grad) == 7 else [1, 2, 3, -(2 ** draw(60))]
            with pytest.raises((ValueError, TypeError, RuntimeError)):
                torch.ops.occforge.upsample_rows_backward(grad, rows, *sizes, scale)
            continue
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            torch.ops.occforge.upsample_rows(volume, rows, scale)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('ignore')
from occforge.ops import has_extension, upsample_rows
volume = torch.tensor([1., 5.]).view(1, 1, 1, 2, 1)
print(has_extension(), *upsample_rows(volume, torch.tensor([0, 1, 2]), 2).flatten().tolist())
"""
    assert run_without_extension(code).split() == ['False', '1.0', '2.0', '4.0']
