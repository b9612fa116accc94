"""Map segmentation on the plane.

Source: Liu et al., "BEVFusion", ICRA 2023.
"""

from collections.abc import Sequence

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine import reduce_mean_count
from ...errors import ConfigError


class BEVGridTransform(nn.Module):
    """Resamples a plane (B, C, X, Y) at the cell centres of another grid, bilinearly, zeros outside.

    Args:
        input_scope: (lower, upper, step) of the plane along x and y, metres; the step is not used.
        output_scope: of the result.
        prescale_factor: resize the plane by this factor first.
    """

    def __init__(self, input_scope, output_scope, prescale_factor: float = 1.0):
        super().__init__()
        self.input_scope = tuple(tuple(scope) for scope in input_scope)
        self.output_scope = tuple(tuple(scope) for scope in output_scope)
        self.prescale_factor = prescale_factor

    def forward(self, x: Tensor) -> Tensor:
        if self.prescale_factor != 1:
            x = F.interpolate(x, scale_factor=self.prescale_factor, mode='bilinear', align_corners=False)
        places = []
        for (imin, imax, _), (omin, omax, ostep) in zip(self.input_scope, self.output_scope):
            # float64, so that a step of 0.3 gives as many cells as the bounds say
            v = torch.arange(omin + ostep / 2, omax, ostep, dtype=torch.float64)
            places.append(((v - imin) / (imax - imin) * 2 - 1).to(x))
        u, v = torch.meshgrid(*places, indexing='ij')
        grid = torch.stack([v, u], dim=-1).expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, mode='bilinear', align_corners=False)


@MODELS.register_module()
class BEVSegmentationHead(BaseModule):
    """One binary map a class: each cell may belong to several.

    Args:
        in_channels: of the plane.
        grid_transform: ``input_scope``, ``output_scope``, ``prescale_factor`` of ``BEVGridTransform``.
        classes: names of the map classes.
        loss: 'focal' or 'xent'.
        loss_weight: factor of every class's loss.
    """

    #: axis of the class rows in a tensor of this module, for loading from other class lists
    class_axes = {'classifier.6': 0}

    def __init__(
        self,
        in_channels: int,
        grid_transform: dict,
        classes: Sequence[str],
        loss: str = 'focal',
        loss_weight: float = 1.0,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if loss not in ('focal', 'xent'):
            raise ConfigError(f"BEVSegmentationHead.loss is {loss!r}, expected 'focal' or 'xent'")
        self.in_channels, self.classes, self.loss_type = in_channels, tuple(classes), loss
        self.loss_weight = loss_weight
        self.transform = BEVGridTransform(**grid_transform)
        layers = []
        for _ in range(2):
            layers += [
                nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(in_channels),
                nn.ReLU(True),
            ]
        self.classifier = nn.Sequential(*layers, nn.Conv2d(in_channels, len(self.classes), 1))

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Plane (B, in_channels, X, Y), or a list of it, to logits (B, classes, X', Y')."""
        x = x[0] if isinstance(x, (list, tuple)) else x
        return self.classifier(self.transform(x))

    def loss(self, logits: Tensor, target: Tensor, labelled: Tensor | None = None) -> dict[str, Tensor]:
        """``{class}/{focal or xent}`` for every class.

        Args:
            logits: (B, classes, X', Y').
            target: of the same shape, 0 or 1.
            labelled: (B,) bool, samples that have a map; None: all. The others do not count.
        """
        if target.shape != logits.shape:
            raise ValueError(
                f'gt_masks_bev: shape {tuple(target.shape)}, expected {tuple(logits.shape)} (samples, classes, X, Y) '
                'of the head'
            )
        logits, target = logits.float(), target.to(logits.device, torch.float32)
        terms = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
        if self.loss_type == 'focal':
            probability = logits.sigmoid()
            certainty = probability * target + (1 - probability) * (1 - target)
            terms = terms * (1 - certainty) ** 2
        each = terms.mean(dim=(2, 3))  # (B, classes)
        if labelled is None:
            labelled = torch.ones(len(each), dtype=torch.bool, device=each.device)
        else:
            labelled = labelled.to(each.device)
        count = reduce_mean_count(labelled.sum())
        means = torch.where(labelled[:, None], each, 0.0).sum(0) / count * self.loss_weight
        return {f'{name}/{self.loss_type}': value for name, value in zip(self.classes, means)}

    def predict(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes, of the logits' shape."""
        return logits.float().sigmoid()
