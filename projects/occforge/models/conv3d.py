"""3D convolution that is fast on a CPU also for a single sample."""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

# Numbers of a single float32 sample, its last axis left out, up to which torch on a CPU calls not oneDNN but its own
# convolution, which takes several times as long (use_mkldnn in aten/src/ATen/native/Convolution.cpp).
_ONEDNN_FROM = 20480

# Outputs with fewer voxels than this along a side are computed in float32 where a CPU would take bfloat16: oneDNN's
# gradient of a bfloat16 kernel then reads memory that nobody has written (2 voxels along the first axis; stride 2 and
# 1 voxel along the last) or writes past its own (stride 2 and 1 voxel along the second). Seen with torch 2.13 on
# AVX512-BF16.
_BFLOAT16_FROM = 3


@MODELS.register_module('VolumeConv3d')
class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d``: the same arguments, parameters and results (but for rounding).

    On a CPU its bfloat16 gradients can be relied on: the smallest volumes are computed in float32.

    A small volume of a single sample (1, C, Z, Y, X) is turned to (1, C, Y, X, Z) where that lets torch call oneDNN; a
    kernel of one voxel over channels-last volumes is a matrix product
    (``tools/benchmarks/ops.py --only "3D convolution"``).

    ``conv_cfg=dict(type='VolumeConv3d')`` in mmcv's layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._needs_float32(x):
            return self._convolve(x, self.weight, self.bias)
        dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        with torch.autocast('cpu', enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._convolve(x.float(), self.weight.float(), bias).to(dtype)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._on_a_cpu(x):
            return self._conv_forward(x, weight, bias)
        if self._is_product(x):
            strides = self.stride
            rows = x[:, :, :: strides[0], :: strides[1], :: strides[2]].permute(0, 2, 3, 4, 1)
            return F.linear(rows, weight.flatten(1), bias).permute(0, 4, 1, 2, 3)
        if not self._turns(x):
            return self._conv_forward(x, weight, bias)
        turned_weight = weight.permute(0, 1, 3, 4, 2)
        if weight.is_contiguous(memory_format=torch.channels_last_3d):
            turned_weight = turned_weight.contiguous(memory_format=torch.channels_last_3d)
        turned = x.permute(0, 1, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d)
        stride, padding, dilation = ((y, x, z) for z, y, x in (self.stride, self.padding, self.dilation))
        return F.conv3d(turned, turned_weight, bias, stride, padding, dilation, self.groups).permute(0, 1, 4, 2, 3)

    def _needs_float32(self, x: Tensor) -> bool:
        if x.device.type != 'cpu' or x.ndim != 5 or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        if dtype not in (torch.bfloat16, torch.float16) or max(self.kernel_size) == 1:
            return False
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return False
        padding = self._reversed_padding_repeated_twice[::-1]
        sides = zip(x.shape[2:], padding[::2], padding[1::2], self.dilation, self.kernel_size, self.stride)
        return min((n + a + b - d * (k - 1) - 1) // s + 1 for n, a, b, d, k, s in sides) < _BFLOAT16_FROM

    def _on_a_cpu(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled('cpu') or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        if x.ndim != 5 or x.device.type != 'cpu' or x.dtype != torch.float32:
            return False
        return self.padding_mode == 'zeros' and not isinstance(self.padding, str)

    def _is_product(self, x: Tensor) -> bool:
        if max(self.kernel_size) > 1 or max(self.padding) > 0 or self.groups > 1:
            return False
        return x.is_contiguous(memory_format=torch.channels_last_3d)

    def _turns(self, x: Tensor) -> bool:
        _, channels, depth, height, width = x.shape
        if len(x) != 1 or max(self.kernel_size) == 1:
            return False
        return channels * depth * height <= _ONEDNN_FROM < channels * height * width
