"""Batch normalisation over all processes, on any backend.

torch's ``SyncBatchNorm`` refuses CPU tensors. This layer works on CPU (gloo) and GPU (nccl), on dense ``(N, C, ...)``
tensors and on ``(rows, C)`` features of sparse tensors, whose number of rows differs between processes: the statistics
are those of all values together, weighted by their counts, as one process with the union of the batches computes them.

Source: S. Ioffe and C. Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
Shift, ICML 2015 (the arithmetic).
"""

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from .dist import all_reduce_sum, rank_and_world


class _NormaliseAcrossRanks(torch.autograd.Function):
    """Input (N, C, ...) -> normalised input, mean (C), biased variance (C), total count (); statistics in float32+."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        compute = torch.promote_types(x.dtype, torch.float32)
        dims = [0, *range(2, x.dim())]
        values = x.to(compute)
        channels = x.shape[1]
        local_count = values.new_full((1,), x.numel() // max(channels, 1))
        first = all_reduce_sum(torch.cat([values.sum(dims), local_count]))
        count = first[-1].clamp(min=1)
        mean = first[:-1] / count
        shape = (1, channels) + (1,) * (x.dim() - 2)
        # a second pass instead of E[x^2] - E[x]^2, which loses all digits where the mean is large
        variance = all_reduce_sum((values - mean.view(shape)).square().sum(dims)) / count
        inverse_deviation = torch.rsqrt(variance + eps)
        normalised = (values - mean.view(shape)) * inverse_deviation.view(shape)
        output = normalised
        if weight is not None:
            output = normalised * weight.to(compute).view(shape) + bias.to(compute).view(shape)
        ctx.save_for_backward(x, weight, mean, inverse_deviation, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, first[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _mean, _variance, _count):
        x, weight, mean, inverse_deviation, count = ctx.saved_tensors
        compute = mean.dtype
        dims = [0, *range(2, x.dim())]
        shape = (1, x.shape[1]) + (1,) * (x.dim() - 2)
        grad = grad_output.to(compute)
        normalised = (x.to(compute) - mean.view(shape)) * inverse_deviation.view(shape)
        grad_bias = grad.sum(dims)
        grad_weight = (grad * normalised).sum(dims)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # the parameters' gradients stay local: DistributedDataParallel reduces them as all others
            sums = all_reduce_sum(torch.stack([grad_bias, grad_weight])) / count
            scale = inverse_deviation if weight is None else inverse_deviation * weight.to(compute)
            grad_x = (grad - sums[0].view(shape) - normalised * sums[1].view(shape)) * scale.view(shape)
            grad_x = grad_x.to(x.dtype)
        if weight is None:
            return grad_x, None, None, None
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


@MODELS.register_module('OccSyncBN')
class CrossRankBatchNorm(_BatchNorm):
    """``nn.BatchNorm1d/2d/3d`` in one, with statistics over all processes in training.

    Same parameters, buffers and state-dict keys as torch's layers. In evaluation, with frozen statistics
    (``track_running_stats`` in eval mode) or in a single process it is plain ``torch.nn.functional.batch_norm``.

    Every process must run the layer equally often, also with zero rows: a process that skips it makes the others wait.
    Where all processes together hold no value, the running statistics stay as they are.

    Shape: input and output (N, C) or (N, C, ...), any number of trailing axes. Not twice differentiable across
    processes; deterministic as far as the backend's reduction is.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f'batch normalisation expects (N, C, ...), got {tuple(x.shape)}')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        use_batch_statistics = self.training or (self.running_mean is None and self.running_var is None)
        if not use_batch_statistics or rank_and_world()[1] == 1:
            return super().forward(x)
        output, mean, variance, count = _NormaliseAcrossRanks.apply(x, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self._update_running_statistics(mean, variance, count)
        return output

    @torch.no_grad()
    def _update_running_statistics(self, mean, variance, count) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        momentum = torch.where(count > 0, momentum, 0.0)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum.to(self.running_var.dtype))


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation in ``module`` by :class:`CrossRankBatchNorm`.

    Parameters and buffers are the same objects afterwards, so an optimizer or a DistributedDataParallel wrapper that
    holds them stays valid; training or evaluation mode of each layer is kept. torch's and mmengine's synchronised
    layers are replaced too. Returns ``module``, or the new layer where ``module`` itself is one.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, CrossRankBatchNorm):
        return _converted(module)
    for name, child in list(module.named_children()):
        new = convert_sync_batchnorm(child)
        if new is not child:
            module._modules[name] = new
    return module


def _converted(layer: _BatchNorm) -> CrossRankBatchNorm:
    new = CrossRankBatchNorm(
        layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=layer.track_running_stats
    )
    new.affine = layer.affine
    new._parameters.update(layer._parameters)
    new._buffers.update(layer._buffers)
    new.training = layer.training
    return new


def count_batch_norms(module: nn.Module) -> int:
    """Number of batch normalisation layers in ``module``, synchronised or not."""
    return sum(isinstance(layer, _BatchNorm) for layer in module.modules())


__all__ = ['CrossRankBatchNorm', 'convert_sync_batchnorm', 'count_batch_norms']
