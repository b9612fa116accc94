"""3D convolution that is fast on a CPU also for a single sample."""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

# Numbers of a single float32 sample, its last axis left out, up to which torch on a CPU calls not oneDNN but its own
# convolution, which takes several times as long (use_mkldnn in aten/src/ATen/native/Convolution.cpp).
_ONEDNN_FROM = 20480


@MODELS.register_module('VolumeConv3d')
class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d``: the same arguments, parameters and results (but for rounding).

    A small volume of a single sample (1, C, Z, Y, X) is turned to (1, C, Y, X, Z) where that lets torch call oneDNN; a
    kernel of one voxel over channels-last volumes is a matrix product
    (``tools/benchmarks/ops.py --only "3D convolution"``).

    ``conv_cfg=dict(type='VolumeConv3d')`` in mmcv's layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._on_a_cpu(x):
            return super().forward(x)
        if self._is_product(x):
            strides = self.stride
            rows = x[:, :, :: strides[0], :: strides[1], :: strides[2]].permute(0, 2, 3, 4, 1)
            return F.linear(rows, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)
        if not self._turns(x):
            return super().forward(x)
        weight = self.weight.permute(0, 1, 3, 4, 2)
        if self.weight.is_contiguous(memory_format=torch.channels_last_3d):
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
        turned = x.permute(0, 1, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d)
        stride, padding, dilation = ((y, x, z) for z, y, x in (self.stride, self.padding, self.dilation))
        return F.conv3d(turned, weight, self.bias, stride, padding, dilation, self.groups).permute(0, 1, 4, 2, 3)

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
