"""Joining the instances of frames into those of the scene."""

from dataclasses import dataclass, fields

import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import AxisAlignedBboxOverlaps3D
from mmengine.model import BaseModule
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError


@MODELS.register_module()
class MergeHead(BaseModule):
    """Queries to unit vectors that are alike where two queries are the same thing in different frames.

    Args:
        in_channels, out_channels, hidden_channels: of the two layers.
        norm: 'layer' or 'batch'.

    A checkpoint with the other norm is refused with a message that says so.
    """

    def __init__(
        self,
        in_channels: int = 256,
        out_channels: int = 256,
        hidden_channels: int | None = None,
        norm: str = 'batch',
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if norm not in ('layer', 'batch'):
            raise ConfigError(f"MergeHead.norm is {norm!r}, expected 'layer' or 'batch'")
        self.norm = norm
        layer = nn.LayerNorm if norm == 'layer' else nn.BatchNorm1d
        hidden = hidden_channels or 2 * in_channels
        self.net = nn.Sequential(
            nn.Linear(in_channels, hidden),
            layer(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_channels),
            layer(out_channels),
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}net.1.weight' in state_dict:
            stored = 'batch' if f'{prefix}net.1.running_mean' in state_dict else 'layer'
            if stored != self.norm:
                raise ConfigError(
                    f'{prefix.rstrip(".")}: the checkpoint has {stored} norm, the model {self.norm} norm: set '
                    f"merge_head.norm='{stored}'"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, queries: Tensor) -> Tensor:
        """(Q, in) -> (Q, out) of length 1."""
        if self.norm == 'batch' and self.training and len(queries) < 2:
            return F.normalize(queries.new_zeros(len(queries), self.net[3].out_features) + queries.sum() * 0, dim=-1)
        return F.normalize(self.net(queries), dim=-1)


@dataclass
class Instances:
    """Instances of a frame, or of the scene so far; n rows each.

    Attributes:
        labels: (n,) int64.
        scores: (n,).
        queries: (n, d) decoder queries.
        features: (n, C) merge features.
        cls_preds: (n, classes + 1) logits.
        centers: (n, 3) metres, of the query's superpoint.
        boxes: (n, 6) corners in metres, or None.
    """

    labels: Tensor
    scores: Tensor
    queries: Tensor
    features: Tensor
    cls_preds: Tensor
    centers: Tensor
    boxes: Tensor | None = None

    def __len__(self):
        return len(self.labels)

    def _map(self, function) -> 'Instances':
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Instances(**{name: None if value is None else function(name, value) for name, value in values.items()})

    def __getitem__(self, rows) -> 'Instances':
        return self._map(lambda _, value: value[rows])

    def joined(self, other: 'Instances') -> 'Instances':
        """These, then the others."""
        return self._map(lambda name, value: torch.cat([value, getattr(other, name)]))


@MODELS.register_module()
class OnlineMerge:
    """Instances of a scene, frame after frame.

    An instance of the present frame is joined with one of the scene by the product of their merge features times the
    overlap of their boxes (or the inverse distance of their centres); classes must agree. What is joined becomes the
    mean of all its frames.

    Source: Xu et al., EmbodiedSAM, ICLR 2025.

    Args:
        inscat_topk_insts: so many, the highest scores, are given out; all are remembered.
        use_bbox: geometry by boxes; False: by centres.
        merge_type: accepted as 'learnable_online', the published one.
    """

    def __init__(self, inscat_topk_insts: int = 100, use_bbox: bool = False, merge_type: str = 'learnable_online'):
        if merge_type != 'learnable_online':
            raise ConfigError(f"OnlineMerge.merge_type is {merge_type!r}, only 'learnable_online' is supported")
        self.topk, self.use_bbox = inscat_topk_insts, use_bbox
        self.reset()

    def reset(self) -> None:
        """Forget the scene."""
        self.scene: Instances | None = None
        self.counts: Tensor | None = None  # frames joined in each instance
        self.frames: list[tuple[Tensor, Tensor]] = []  # masks (n, P) of each frame and the instance of each

    def push(self, masks: Tensor, found: Instances) -> Tensor:
        """Take in a frame.

        Args:
            masks: (n, P) bool over the frame's points.
            found: its n instances.

        Returns:
            (n,) int64 number of each in the scene; numbers never change.
        """
        if self.scene is None:
            self.scene, owner = found._map(lambda _, value: value.clone()), torch.arange(len(found))
            self.counts = torch.ones(len(found), device=found.scores.device)
        else:
            owner = self._merge(found)
        owner = owner.to(masks.device)
        self.frames.append((masks, owner))
        return owner

    def _merge(self, found: Instances) -> Tensor:
        scene, affinity = self.scene, self._affinity(self.scene, found)
        rows, columns = linear_sum_assignment(affinity.cpu().double().numpy(), maximize=True)
        rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
        good = affinity.cpu()[rows, columns] > 0
        rows, columns = rows[good].to(scene.scores.device), columns[good].to(scene.scores.device)
        count = self.counts[rows]

        def mean(name, value):
            if name == 'labels':  # of the frame that saw it first
                return value
            c = count.reshape(-1, *[1] * (value.dim() - 1)).to(value.dtype)
            return value.index_copy(0, rows, (value[rows] * c + getattr(found, name)[columns]) / (c + 1))

        self.counts[rows] += 1
        fresh = torch.ones(len(found), dtype=torch.bool, device=columns.device)
        fresh[columns] = False
        owner = torch.empty(len(found), dtype=torch.int64, device=columns.device)
        owner[columns] = rows
        owner[fresh] = len(scene) + torch.arange(int(fresh.sum()), device=columns.device)
        self.scene = scene._map(mean).joined(found[fresh])
        self.counts = torch.cat([self.counts, self.counts.new_ones(int(fresh.sum()))])
        return owner

    def _affinity(self, scene: Instances, found: Instances) -> Tensor:
        """(scene, frame), 0 where two must not be joined."""
        alike = scene.features @ found.features.t()
        if self.use_bbox:
            near = AxisAlignedBboxOverlaps3D()(scene.boxes[None], found.boxes[None])[0]
        else:
            near = 1 / (torch.cdist(scene.centers, found.centers) + 1e-6)
        mix = (alike * near).clamp(min=0)
        return torch.where(scene.labels[:, None] == found.labels[None], mix, 0.0)

    def best(self) -> tuple[Tensor, Instances]:
        """Numbers (k,) and values of the instances with the highest scores: best first where some are left out, else in
        order of appearance."""
        if len(self.scene) > self.topk:
            number = self.scene.scores.topk(self.topk).indices
        else:
            number = torch.arange(len(self.scene), device=self.scene.scores.device)
        return number, self.scene[number]

    def masks(self, number: Tensor) -> Tensor:
        """(k, points of all frames) bool of the instances ``number``."""
        place = torch.full((len(self.scene),), -1, dtype=torch.int64, device=number.device)
        place[number] = torch.arange(len(number), device=number.device)
        parts = []
        for masks, owner in self.frames:
            part = masks.new_zeros(len(number), masks.shape[1])
            row = place[owner]
            part[row[row >= 0]] = masks[row >= 0]
            parts.append(part)
        return torch.cat(parts, 1)


def box_corners(centers: Tensor, boxes: Tensor) -> Tensor:
    """(n, 3) centres of superpoints and (n, 6) offset and size, metres -> (n, 6) corners."""
    middle = centers + boxes[:, :3]
    return torch.cat([middle - boxes[:, 3:] / 2, middle + boxes[:, 3:] / 2], 1)
