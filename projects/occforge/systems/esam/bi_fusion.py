"""Bi-Fusion: image texture joined with geometry, point by point."""

import math

import torch
from mmcv.cnn import ConvModule
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ...models.minkowski import Voxelized
from .tiny_sa import TinySA2D, _zero_linear


def _build(config, **defaults):
    """A registered module; ``ConvModule`` is mmcv's and in no registry of ours."""
    config = dict(defaults, **config)
    if config['type'] == 'ConvModule':
        config.pop('type')
        return ConvModule(**config)
    return MODELS.build(config)


@MODELS.register_module()
class BiFusionEncoder(BaseModule):
    """Point features from the U-Net, plus what the image shows where the point is projected.

    fused = f3 + valid * gate * W(f2 + global); W starts at zero, so an encoder that is fresh computes what its 3D
    branch computes, and weights of that branch, the decoder and so on stay good. Points outside of the image (uv NaN)
    have the 3D features alone.

    Args:
        backbone3d: config of the sparse U-Net.
        backbone2d: config, ``ClipConv1``.
        conv_reduce: config of the trainable 1x1 layer on the map of the image.
        neck3d: config of a neck behind the U-Net, or None.
        voxel_size: metres.
        out_channels: of the point features, those of ``backbone3d``.
        pe_channels: of the position code.
        use_tiny_sa_2d: attention on the map of the image.
        use_global: add the mean feature of the image.
        freeze_3d: 'none', 'all', or names inside backbone3d (``['conv0p1s1', 'block1']``) that do not train.
        unfreeze_3d: names inside backbone3d that train all the same (``freeze_3d='all', unfreeze_3d=['block1',
            'block2']``: these two alone).
        image_size: (W, H) to which ``uv`` refers.

    Attributes:
        fallback_count: frames whose image features were computed because none were given.
        missing_count: frames without features and without an image: pure 3D.
        projected: points and valid points seen since ``reset_counts``.
    """

    def __init__(
        self,
        backbone3d: dict,
        backbone2d: dict,
        conv_reduce: dict | None = None,
        neck3d: dict | None = None,
        voxel_size: float = 0.02,
        out_channels: int = 96,
        pe_channels: int = 32,
        use_tiny_sa_2d: bool = False,
        use_global: bool = True,
        freeze_3d='none',
        unfreeze_3d=(),
        image_size=(640, 480),
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.backbone3d = MODELS.build(backbone3d)
        self.neck3d = (
            None if neck3d is None else MODELS.build(dict(neck3d, voxel_size=neck3d.get('voxel_size', voxel_size)))
        )
        self.backbone2d = MODELS.build(backbone2d)
        width = self.backbone2d.conv1.out_channels
        default = dict(type='ConvModule', in_channels=width // 4, out_channels=256, kernel_size=1)
        self.conv_reduce = _build(conv_reduce or default)
        reduced = (conv_reduce or default)['out_channels']
        self.tiny_sa_2d = TinySA2D(reduced) if use_tiny_sa_2d else None
        c = out_channels
        self.lin2d = nn.Sequential(nn.Linear(reduced, c), nn.LayerNorm(c), nn.GELU(), nn.Linear(c, c))
        self.glob_proj = nn.Linear(width, c) if use_global else None
        self.pe_mlp = nn.Sequential(nn.Linear(52, pe_channels), nn.ReLU(), nn.Linear(pe_channels, pe_channels))
        self.norm = nn.LayerNorm(c, elementwise_affine=False)
        self.gate = nn.Linear(2 * c + pe_channels, c)
        self.out_proj = _zero_linear(c, c)
        self.image_size = tuple(image_size)
        self._freeze(freeze_3d, unfreeze_3d)
        self.reset_counts()

    def _freeze(self, freeze_3d, unfreeze_3d) -> None:
        if freeze_3d in ('none', 'all'):
            self.frozen = [self.backbone3d] if freeze_3d == 'all' else []
        elif isinstance(freeze_3d, str):
            raise ConfigError(f"BiFusionEncoder.freeze_3d is {freeze_3d!r}, expected 'none', 'all' or a list of names")
        else:
            self.frozen = self._parts_3d('freeze_3d', freeze_3d)
        self.unfrozen = self._parts_3d('unfreeze_3d', unfreeze_3d)
        for module in self.frozen:
            module.requires_grad_(False)
        for module in self.unfrozen:
            module.requires_grad_(True)

    def _parts_3d(self, field: str, names) -> list[nn.Module]:
        modules = dict(self.backbone3d.named_modules())
        for name in names:
            if name not in modules:
                raise ConfigError(f'BiFusionEncoder.{field}: backbone3d has no module {name!r}')
        return [modules[name] for name in names]

    def train(self, mode: bool = True):
        """Frozen parts stay in evaluation mode."""
        super().train(mode)
        self.backbone2d.eval()
        for module in self.frozen:
            module.eval()
        for module in self.unfrozen:
            module.train(mode)
        return self

    def reset_counts(self) -> None:
        """Counters of frames and points to zero."""
        self.fallback_count = self.missing_count = 0
        self.projected = dict(points=0, valid=0)

    def forward(
        self, voxels: Voxelized, xyz: list[Tensor], uv=None, clip_pix=None, clip_global=None, images=None, memory=None
    ) -> list[Tensor]:
        """Fused features (P, C) of the points of each sample.

        Args:
            voxels: of the points of all samples.
            xyz: for each sample (P, 3), metres, as the voxels have it.
            uv: for each sample (P, 2) pixels of the unaugmented points (u right, v down, pixel centres at whole
                numbers), NaN outside of the image; None: no sample is projected.
            clip_pix, clip_global: for each sample (width / 4, h, w) and (width,), or None.
            images: for each sample (3, H, W) RGB 0..255, or None; used where there is no ``clip_pix``.
            memory: see ``Res16UNet34C``.
        """
        x = self.backbone3d(voxels.tensor, memory=memory)
        if self.neck3d is not None:
            x = self.neck3d(x)
        sizes = [len(points) for points in xyz]
        f3 = x.features[voxels.inverse].float().split(sizes)
        count = len(sizes)
        uv, clip_pix, clip_global, images = (
            [None] * count if values is None else list(values) for values in (uv, clip_pix, clip_global, images)
        )
        maps, means = self._image_features(clip_pix, clip_global, images)
        return [self._fuse(*parts) for parts in zip(f3, xyz, uv, maps, means)]

    def _image_features(self, clip_pix, clip_global, images):
        """Reduced map (C, h, w) and mean feature of each sample, None where there is neither features nor image."""
        pix, mean = list(clip_pix), list(clip_global)
        wanted = [i for i, each in enumerate(pix) if each is None and images[i] is not None]
        self.fallback_count += len(wanted)
        self.missing_count += sum(pix[i] is None and images[i] is None for i in range(len(pix)))
        for i in wanted:
            found = self.backbone2d(images[i][None])
            pix[i], mean[i] = found[0][0], found[1][0]
        maps: list = [None] * len(pix)
        shapes = {each.shape for each in pix if each is not None}
        dtype = next(self.conv_reduce.parameters()).dtype
        for shape in sorted(shapes):
            rows = [i for i, each in enumerate(pix) if each is not None and each.shape == shape]
            reduced = self.conv_reduce(torch.stack([pix[i].to(dtype) for i in rows]))
            if self.tiny_sa_2d is not None:
                reduced = self.tiny_sa_2d(reduced)
            for row, each in zip(rows, reduced):
                maps[row] = each
        return maps, mean

    def _fuse(self, f3, xyz, uv, feature_map, mean):
        self.projected['points'] += len(f3)
        if feature_map is None or uv is None:
            # the layers take part all the same: every process of a training has the same gradients to share
            return f3 + self._idle() if self.training else f3
        valid = torch.isfinite(uv).all(1)
        self.projected['valid'] += int(valid.sum())
        with torch.autocast(f3.device.type, enabled=False):
            f2 = self.lin2d(sample_map(feature_map.float(), uv, self.image_size))
            gate = self.gate(torch.cat([self.norm(f2), self.norm(f3), self.pe_mlp(position_code(xyz))], 1)).sigmoid()
            if self.glob_proj is not None and mean is not None:
                f2 = f2 + self.glob_proj(mean.float())
            return f3 + valid[:, None] * gate * self.out_proj(f2)

    def _idle(self) -> Tensor:
        parts = (self.conv_reduce, self.lin2d, self.glob_proj, self.pe_mlp, self.gate)
        modules = [part for part in (*parts, self.out_proj, self.tiny_sa_2d) if part is not None]
        return sum(p.sum() * 0 for module in modules for p in module.parameters())


def sample_map(feature_map: Tensor, uv: Tensor, image_size) -> Tensor:
    """Bilinear samples (P, C) of a map (C, h, w) at pixels ``uv`` (P, 2) of an image (W, H); 0 where uv is NaN."""
    size = uv.new_tensor(image_size)
    grid = (2 * (uv.float() + 0.5) / size - 1).nan_to_num(nan=-10.0)  # far outside
    sampled = F.grid_sample(feature_map[None], grid[None, None].to(feature_map), align_corners=False)
    return sampled[0, :, 0].t()


def position_code(xyz: Tensor) -> Tensor:
    """(P, 3) metres -> (P, 52): offset from the mean, sine and cosine of 8 frequencies an axis, height above the
    lowest point."""
    local = xyz - xyz.mean(0) if len(xyz) else xyz
    angles = local[:, :, None] * (math.pi * 2.0 ** torch.arange(8, device=xyz.device))
    height = xyz[:, 2:] - xyz[:, 2].min() if len(xyz) else xyz[:, 2:]
    return torch.cat([local, angles.sin().flatten(1), angles.cos().flatten(1), height], 1)
