"""The sparse U-Net of ESAM."""

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn

from ...errors import ConfigError
from ...models.minkowski import MinkBatchNorm, MinkConv, MinkConvTranspose
from ...models.sparse import SparseModule, SparseSequential, SparseTensor


class BasicBlock(SparseModule):
    """Two 3^3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, channels: int, key: str, dilation: int = 1, bn_momentum: float = 0.02):
        super().__init__()
        self.conv1 = MinkConv(in_channels, channels, 3, dilation=dilation, indice_key=key)
        self.norm1 = MinkBatchNorm(channels)
        self.conv2 = MinkConv(channels, channels, 3, dilation=dilation, indice_key=key)
        self.norm2 = MinkBatchNorm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if in_channels != channels:
            self.downsample = SparseSequential(
                MinkConv(in_channels, channels, 1), MinkBatchNorm(channels, momentum=bn_momentum)
            )

    def forward(self, x: SparseTensor) -> SparseTensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm1(self.conv1(x))
        out = self.norm2(self.conv2(out.replace_feature(self.relu(out.features))))
        return out.replace_feature(self.relu(out.features + shortcut.features))


@MODELS.register_module()
class Res16UNet34C(BaseModule):
    """Residual U-Net over voxels, four levels down and up; no biases.

    Source: C. Choy et al., 4D Spatio-Temporal ConvNets, CVPR 2019; the variant of J. Schult et al., Mask3D, ICRA 2023.

    Args:
        in_channels: of the voxels (3: colours).
        out_channels: accepted as in the published configs; the width of the output is the last of ``planes``.
        config: dict with ``conv1_kernel_size``, ``bn_momentum`` (stem, strided and shortcut layers; the norms inside
            blocks have torch's 0.1, as published), ``dilations`` of the four encoder levels.
        planes: channels of the four encoder and the four decoder levels.
        init_dim: channels of the stem.
        layers: blocks of each level.
        insert_stages: encoder levels (1 to 4) behind which ``insert`` is put, none as published.
        insert: config of ``TinySANeck`` there, of which only what differs is given: by default one block, each voxel of
            the level a token that sees up to four voxels far.
        voxel_size: metres, for ``insert`` alone.

    The voxels' coordinates keep their order: row i of the output belongs to row i of the input.
    """

    PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
    LAYERS = (2, 3, 4, 6, 2, 2, 2, 2)
    INIT_DIM = 32

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 96,
        config: dict | None = None,
        planes=None,
        init_dim: int | None = None,
        layers=None,
        insert_stages=(),
        insert: dict | None = None,
        voxel_size: float = 0.02,
        init_cfg=None,
        **unused,
    ):
        super().__init__(init_cfg)
        if unused and set(unused) - {'D', 'out_fpn'}:
            raise TypeError(f'Res16UNet34C: unknown arguments {sorted(set(unused) - {"D", "out_fpn"})}')
        config = dict(conv1_kernel_size=5, bn_momentum=0.02, dilations=(1, 1, 1, 1)) | dict(config or {})
        planes, layers = tuple(planes or self.PLANES), tuple(layers or self.LAYERS)
        width = init_dim or self.INIT_DIM
        momentum, dilations = config['bn_momentum'], config['dilations']
        self.relu = nn.ReLU(inplace=True)
        self.in_channels, self.planes, self.out_channels = in_channels, planes, planes[-1]

        size = config['conv1_kernel_size']
        self.conv0p1s1 = MinkConv(in_channels, width, size, indice_key=f'stride1_k{size}')
        self.bn0 = MinkBatchNorm(width, momentum)

        def level(channels, number, stride, dilation=1):
            key = f'stride{stride}_k3' if dilation == 1 else f'stride{stride}_k3d{dilation}'
            blocks = [
                BasicBlock(channels if i == 0 else planes[number - 1], planes[number - 1], key, dilation, momentum)
                for i in range(layers[number - 1])
            ]
            return SparseSequential(*blocks)

        inputs, stride, skips = width, 1, [width]
        for number in range(1, 5):
            down = MinkConv(inputs, inputs, 2, stride=2, indice_key=f'stride{stride}_down')
            self.add_module(f'conv{number}p{stride}s2', down)
            self.add_module(f'bn{number}', MinkBatchNorm(inputs, momentum))
            stride *= 2
            self.add_module(f'block{number}', level(inputs, number, stride, dilations[number - 1]))
            inputs = planes[number - 1]
            skips.append(inputs)
        skips.pop()
        for number in range(4, 8):
            out = planes[number]
            up = MinkConvTranspose(inputs, out, indice_key=f'stride{stride // 2}_down')
            self.add_module(f'convtr{number}p{stride}s2', up)
            self.add_module(f'bntr{number}', MinkBatchNorm(out, momentum))
            stride //= 2
            self.add_module(f'block{number + 1}', level(out + skips.pop(), number + 1, stride))
            inputs = out
        self.insert_stages = tuple(insert_stages)
        self.inserted = nn.ModuleDict()
        for stage in self.insert_stages:
            if stage not in (1, 2, 3, 4):
                raise ConfigError(f'Res16UNet34C.insert_stages: expected levels of 1 to 4, found {stage!r}')
            size = voxel_size * 2**stage  # metres
            built = dict(type='TinySA', in_channels=planes[stage - 1], voxel_size=size, cell=1, radius=4 * size)
            self.inserted[str(stage)] = MODELS.build(dict(built, num_layers=1) | dict(insert or {}))

    def _act(self, norm, x: SparseTensor) -> SparseTensor:
        x = norm(x)
        return x.replace_feature(self.relu(x.features))

    def forward(self, x: SparseTensor, memory=None, stem_features=None) -> SparseTensor:
        """Voxels to voxels (V, ``out_channels``).

        Args:
            x: input voxels.
            memory: called with the list of the four encoder outputs (strides 2, 4, 8, 16), gives what takes their
                place at the same voxels.
            stem_features: called with the stem's output, gives features to add to it, (V, ``init_dim``).

        Raises:
            ConfigError: the voxels have other than ``in_channels`` features.
        """
        if x.features.shape[1] != self.in_channels:
            raise ConfigError(
                f'Res16UNet34C.in_channels is {self.in_channels}, the points have {x.features.shape[1]} values beside '
                'their coordinates: use_dim, use_color and shift_height of the loading step decide'
            )
        stem = self._act(self.bn0, self.conv0p1s1(x))
        if stem_features is not None:
            stem = stem.replace_feature(stem.features + stem_features(stem))
        out, stride, levels = stem, 1, []
        for number in range(1, 5):
            out = self._act(getattr(self, f'bn{number}'), getattr(self, f'conv{number}p{stride}s2')(out))
            stride *= 2
            out = getattr(self, f'block{number}')(out)
            if number in self.insert_stages:
                out = self.inserted[str(number)](out)
            levels.append(out)
        if memory is not None:
            levels = memory(levels)
        skips, out = [stem, *levels[:-1]], levels[-1]
        for number in range(4, 8):
            out = self._act(getattr(self, f'bntr{number}'), getattr(self, f'convtr{number}p{stride}s2')(out))
            stride //= 2
            out = out.replace_feature(torch.cat([out.features, skips.pop().features], 1))
            out = getattr(self, f'block{number + 1}')(out)
        return out
