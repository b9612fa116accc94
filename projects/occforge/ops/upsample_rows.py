"""Trilinear upsampling at chosen voxels: what a loss that looks at a part of the grid needs, without the whole grid."""

import torch
import torch.nn.functional as F

from ._backend import choose, compiled
from ._checks import check_device, check_tensor

__all__ = ['upsample_rows', 'upsample_rows_reference']

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def upsample_rows(volume: torch.Tensor, rows: torch.Tensor, scale_factor: int) -> torch.Tensor:
    """``interpolate(mode='trilinear', align_corners=False)`` by a whole factor s, at some voxels of the fine grid.

    Args:
        volume: (B, Z, Y, X, C), channels last.
        rows: (V,) int64, places in the flattened fine grid (B, sZ, sY, sX); any order, repeats allowed.
        scale_factor: s, 1 to 64.

    Returns:
        Tensor: (V, C), dtype of ``volume``; float32 under autocast. Sums are float32 for float16 and bfloat16.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or factor; a row outside the grid (on a GPU, where raising
            would make the host wait, it gives zeros).

    Differentiable (any number of times) in ``volume``. Deterministic, forward and backward. CPU (threaded) and CUDA.
    """
    check_tensor('volume', volume, '(B, Z, Y, X, C)', 5, dtypes=_FLOATING)
    check_tensor('rows', rows, '(V,)', 1, dtypes=(torch.int64,))
    if type(scale_factor) is not int or not 1 <= scale_factor <= 64:
        raise ValueError(f'scale_factor must be a whole number in 1..64, found {scale_factor!r}')
    check_device(volume=volume, rows=rows)
    return choose('upsample_rows', volume.device, upsample_rows_reference)(volume, rows, scale_factor)


def upsample_rows_reference(volume, rows, scale_factor):
    """Plain-torch form of ``upsample_rows``, differentiable, with the whole fine grid in memory."""
    batch, *size, channels = volume.shape
    fine = batch * size[0] * size[1] * size[2] * scale_factor**3
    if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < fine):
        wrong = int(rows.min()) if int(rows.min()) < 0 else int(rows.max())
        raise ValueError(f'rows must be in 0..{fine - 1}, found {wrong}')
    if not rows.numel() or not channels:
        return volume.sum() * 0 + volume.new_zeros(len(rows), channels)
    accumulate = volume.dtype if volume.dtype == torch.float64 else torch.float32
    channels_first = volume.to(accumulate).permute(0, 4, 1, 2, 3)
    whole = F.interpolate(channels_first, scale_factor=scale_factor, mode='trilinear', align_corners=False)
    return whole.permute(0, 2, 3, 4, 1).flatten(0, 3)[rows].to(volume.dtype)


if compiled('upsample_rows', 'upsample_rows_backward'):

    @torch.library.register_fake('occforge::upsample_rows')
    def _(volume, rows, scale):
        return volume.new_empty(rows.shape[0], volume.shape[4])

    @torch.library.register_fake('occforge::upsample_rows_backward')
    def _(grad, rows, batch, depth, height, width, scale):
        return grad.new_empty(batch, depth, height, width, grad.shape[1])

    def _setup_forward(ctx, inputs, output):
        volume, rows, ctx.scale = inputs
        ctx.size = volume.shape[:4]
        ctx.save_for_backward(rows)

    def _forward_formula(ctx, grad):
        (rows,) = ctx.saved_tensors
        return torch.ops.occforge.upsample_rows_backward(grad, rows, *ctx.size, ctx.scale), None, None

    def _setup_backward(ctx, inputs, output):
        _, rows, *_, ctx.scale = inputs
        ctx.save_for_backward(rows)

    def _backward_formula(ctx, grad):
        # a linear map's gradient is its transpose: the two operators are each other's
        (rows,) = ctx.saved_tensors
        return torch.ops.occforge.upsample_rows(grad, rows, ctx.scale), *[None] * 6

    torch.library.register_autograd('occforge::upsample_rows', _forward_formula, setup_context=_setup_forward)
    torch.library.register_autograd(
        'occforge::upsample_rows_backward', _backward_formula, setup_context=_setup_backward
    )
    for _device in ('cpu', 'cuda'):
        torch.library.register_autocast('occforge::upsample_rows', _device, torch.float32)
