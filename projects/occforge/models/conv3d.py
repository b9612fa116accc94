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

    A small volume of a single sample (1, C, Z, Y, X) is turned to (1, C, Y, X, Z) where that lets torch call oneDNN
    (``tools/benchmarks/ops.py --only "3D convolution"``).

    ``conv_cfg=dict(type='VolumeConv3d')`` in mmcv's layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self._turns(x):
            return super().forward(x)
        weight = self.weight.permute(0, 1, 3, 4, 2)
        if self.weight.is_contiguous(memory_format=torch.channels_last_3d):
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
        turned = x.permute(0, 1, 3, 4, 2).contiguous(memory_format=torch.channels_last_3d)
        stride, padding, dilation = ((y, x, z) for z, y, x in (self.stride, self.padding, self.dilation))
        return F.conv3d(turned, weight, self.bias, stride, padding, dilation, self.groups).permute(0, 1, 4, 2, 3)

    def _turns(self, x: Tensor) -> bool:
        if torch.is_autocast_enabled('cpu') or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        if x.ndim != 5 or len(x) != 1 or x.device.type != 'cpu' or x.dtype != torch.float32:
            return False
        if self.padding_mode != 'zeros' or isinstance(self.padding, str) or max(self.kernel_size) == 1:
            return False
        _, channels, depth, height, width = x.shape
        return channels * depth * height <= _ONEDNN_FROM < channels * height * width
