"""FB-OCC's occupancy head: several levels of voxel features, weighted voxel by voxel, to class logits."""

import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError
from ...models.checkpointing import checkpoint
from ...models.conv3d import Conv3d
from ...models.losses import (
    distance_map,
    geometric_scaling_loss,
    log_frequency_weights,
    lovasz_softmax,
    semantic_scaling_loss,
    voxel_dice_loss,
    voxel_focal_loss,
)

_WEIGHTS = dict(ce=1.0, sem_scal=1.0, geo_scal=1.0, lovasz=1.0, dice=2.0)


@MODELS.register_module()
class OccHead(BaseModule):
    """Classifies the voxels of a grid twice as fine as its finest input.

    Source: Li et al., "FB-OCC", 2023.

    Args:
        in_channels: of the levels, a number or an equal one for each.
        out_channel: classes, and logits. 19: index 0 is "void" that no voxel has, then Occ3D's 18; 18: Occ3D's own.
        num_level: levels, finest first.
        soft_weights: weigh the levels by a softmax at every voxel; False: their plain mean.
        use_deblock: a transposed convolution makes one more level at twice the resolution, that of the answer.
        empty_idx: class "free", the last one.
        use_focal_loss: distance-aware focal loss as the ``ce`` term; False: cross entropy.
        use_dice_loss: a dice term besides.
        balance_cls_weight: factors 1 / ln(voxels of the class in nuScenes) in the ``ce`` term.
        class_weight: other factors, one a logit, where ``balance_cls_weight`` is left on.
        loss_weight_cfg: ``loss_voxel_{ce,sem_scal,geo_scal,lovasz,dice}_weight``.
        with_cp: recompute the finest convolutions in the backward pass to save memory.
        norm_cfg: norm layer.
        final_occ_size, point_cloud_range: accepted for the published configs; the answer has the finest level's size.

    ``forward`` takes a list of (B, C, Y_i, X_i, Z_i) and returns logits (B, out_channel, Y, X, Z).
    """

    def __init__(
        self,
        in_channels,
        out_channel,
        num_level=1,
        soft_weights=False,
        use_deblock=True,
        empty_idx=18,
        use_focal_loss=True,
        use_dice_loss=False,
        balance_cls_weight=True,
        class_weight=None,
        loss_weight_cfg=None,
        with_cp=False,
        norm_cfg=None,
        final_occ_size=None,
        point_cloud_range=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        widths = set(in_channels) if isinstance(in_channels, (list, tuple)) else {in_channels}
        if len(widths) != 1:
            raise ConfigError(f'OccHead.in_channels is {in_channels}, expected the same number for every level')
        if empty_idx != out_channel - 1:
            raise ConfigError(f'OccHead.empty_idx is {empty_idx}, expected the last class, {out_channel - 1}')
        (width,) = widths
        middle, thin = width // 2, width // 4
        norm_cfg = norm_cfg or dict(type='BN3d')
        self.num_level, self.out_channel, self.empty_idx = num_level, out_channel, empty_idx
        self.use_focal_loss, self.with_cp = use_focal_loss, with_cp
        self.weights = dict(_WEIGHTS)
        for name, value in (loss_weight_cfg or {}).items():
            term = name.removeprefix('loss_voxel_').removesuffix('_weight')
            if term not in self.weights:
                raise ConfigError(f'OccHead.loss_weight_cfg has the unknown key {name!r}')
            self.weights[term] = value
        if not use_dice_loss:
            self.weights['dice'] = 0.0

        def block(convolution, channels):
            return [convolution, build_norm_layer(norm_cfg, channels)[1], nn.ReLU(inplace=True)]

        self.occ_convs = nn.ModuleList(
            [nn.Sequential(*block(Conv3d(width, middle, 3, 1, 1, bias=False), middle)) for _ in range(num_level)]
        )
        self.occ_pred_conv = nn.Sequential(
            *block(Conv3d(middle, thin, 1, bias=False), thin), Conv3d(thin, out_channel, 1, bias=False)
        )
        maps = num_level + use_deblock
        self.voxel_soft_weights = None
        if soft_weights:
            self.voxel_soft_weights = nn.Sequential(
                *block(Conv3d(middle, thin, 1, bias=False), thin), Conv3d(thin, maps, 1, bias=False)
            )
        self.deblock = None
        if use_deblock:
            self.deblock = nn.Sequential(*block(nn.ConvTranspose3d(width, middle, 2, 2, bias=False), middle))
        weight = None
        if class_weight is not None:
            weight = torch.tensor(class_weight, dtype=torch.float32)
        elif balance_cls_weight:
            weight = log_frequency_weights()
            if out_channel == len(weight) + 1:
                weight = F.pad(weight, (1, 0))  # void is nobody's class
        if weight is not None and len(weight) != out_channel:
            raise ConfigError(f'OccHead.class_weight has {len(weight)} entries, expected {out_channel}')
        self.register_buffer('class_weights', weight, persistent=False)

    @property
    def has_void(self) -> bool:
        """Whether logit 0 stands for "void", which shifts Occ3D's classes by one."""
        return self.out_channel == 19

    def forward(self, levels):
        if len(levels) != self.num_level:
            raise ConfigError(f'OccHead.num_level is {self.num_level}, {len(levels)} levels are given')
        maps = [self._run(conv, level) for conv, level in zip(self.occ_convs, levels)]
        if self.deblock is not None:
            maps.insert(0, self._run(self.deblock, levels[0]))
        size = maps[0].shape[2:]
        shares = [1.0 / len(maps)] * len(maps)
        if self.voxel_soft_weights is not None:
            shares = self.voxel_soft_weights(maps[0]).softmax(dim=1).split(1, dim=1)
        # The 1x1x1 convolution commutes with the interpolation and the voxels' weights: applied first it halves the
        # channels of everything at the fine grid.
        reduce, *rest = self.occ_pred_conv
        total = None
        for share, volume in zip(shares, maps):
            volume = reduce(volume)
            if volume.shape[2:] != size:
                volume = F.interpolate(volume, size=size, mode='trilinear', align_corners=False)
            total = share * volume if total is None else total + share * volume
        for layer in rest:
            total = layer(total)
        return total

    def _run(self, layer, x):
        return checkpoint(layer, layer, x) if self.with_cp and x.requires_grad else layer(x)

    def loss(self, logits, target) -> dict:
        """Losses of logits (B, C, Y, X, Z) against labels (B, Y, X, Z), 255 = not supervised.

        Returns:
            ``loss_voxel_{ce,sem_scal,geo_scal,lovasz}_c_0`` and, where asked for, ``loss_voxel_dice_c_0``; the voxels
            of the whole batch are one set. NaN and infinity among the logits count as 0.
        """
        with torch.autocast(logits.device.type, enabled=False):
            chosen = (target.flatten() != 255).nonzero().squeeze(1)
            labels = target.flatten()[chosen].long()
            rows = logits.permute(0, 2, 3, 4, 1).reshape(-1, logits.shape[1]).index_select(0, chosen)
            rows = rows.float().nan_to_num(0.0, 0.0, 0.0)
            probability = rows.softmax(dim=1)
            classes = range(1, self.out_channel - 1) if self.has_void else range(self.out_channel - 1)
            losses = dict(
                ce=self._ce_loss(rows, labels, chosen, target.shape),
                sem_scal=semantic_scaling_loss(probability, labels, classes),
                geo_scal=geometric_scaling_loss(probability, labels, self.empty_idx),
                lovasz=lovasz_softmax(probability, labels),
            )
            if self.weights['dice']:
                losses['dice'] = voxel_dice_loss(rows, labels)
        return {f'loss_voxel_{term}_c_0': self.weights[term] * loss for term, loss in losses.items()}

    def _ce_loss(self, rows, labels, chosen, shape):
        if not self.use_focal_loss:
            if not len(labels):
                return rows.sum() * 0.0
            return F.cross_entropy(rows, labels, self.class_weights)
        distance = distance_map(*shape[1:3]).to(rows.device)
        column = chosen // shape[3] % (shape[1] * shape[2])
        return 100.0 * voxel_focal_loss(rows, labels, self.class_weights, distance.flatten()[column])

    def semantics(self, probability):
        """Most probable Occ3D class: ``probabilities`` (B, 18, X, Y, Z) -> (B, X, Y, Z) uint8."""
        return probability.argmax(dim=1).to(torch.uint8)

    def probabilities(self, logits):
        """Logits (B, C, Y, X, Z) -> probabilities (B, 18, X, Y, Z) of Occ3D's classes."""
        logits = logits.float()
        return (logits[:, 1:] if self.has_void else logits).softmax(dim=1).transpose(2, 3)
