"""Superpoint queries to instances."""

from dataclasses import dataclass, field

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import ConfigError
from .pooling import group_mean


@dataclass
class Predictions:
    """What the decoder says of a batch; lists over the samples.

    Attributes:
        cls_preds: (Q, classes + 1) logits, the last for "no object".
        masks: (Q, P) point or (Q, S) superpoint logits, as ``mask_mode``.
        mask_mode: 'P' or 'SP'.
        sem_preds: (Q, semantic classes + 1) logits, the last layer's alone; else None.
        scores: (Q, 1) predicted mask quality, or None.
        bboxes: (Q, 6) offset from the superpoint's centre and size in metres, or None.
        queries: (Q, d) normalised queries, the last layer's alone.
        aux: predictions of the earlier layers, the first before any layer.
    """

    cls_preds: list[Tensor]
    masks: list[Tensor]
    mask_mode: str
    sem_preds: list[Tensor] | None = None
    scores: list[Tensor] | None = None
    bboxes: list[Tensor] | None = None
    queries: list[Tensor] | None = None
    aux: list['Predictions'] = field(default_factory=list)


def _mlp(inputs: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, out))


class _Attention(BaseModule):
    """Multi-head attention of one sample, residual, norm behind it."""

    def __init__(self, d_model: int, num_heads: int, dropout: float):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, num_heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, queries: Tensor, source: Tensor, blocked: Tensor | None = None) -> Tensor:
        """queries (Q, d), source (K, d), blocked (Q, K) bool -> (Q, d)."""
        out, _ = self.attn(queries[None], source[None], source[None], attn_mask=blocked, need_weights=False)
        return self.norm(queries + self.dropout(out[0]))


class _FFN(BaseModule):
    def __init__(self, d_model: int, hidden: int, dropout: float, activation: str):
        super().__init__()
        act = dict(relu=nn.ReLU, gelu=nn.GELU)[activation]()
        self.net = nn.Sequential(
            nn.Linear(d_model, hidden), act, nn.Dropout(dropout), nn.Linear(hidden, d_model), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.net(x))


@MODELS.register_module()
class ScanNetMixQueryDecoder(BaseModule):
    """Queries (superpoints) attend to the superpoints, then to each other; every stage predicts masks over superpoints
    or points, and a stage's masks say where the next one looks.

    Source: Xu et al., EmbodiedSAM, ICLR 2025.

    Args:
        num_layers: attention layers.
        cross_attn_mode: for each prediction stage (the first has no layer, '') what the layer attends to, 'SP' or 'P'.
        mask_pred_mode: for each stage over what masks are predicted; the last 'P'.
        num_instance_classes: 1: class-agnostic. One more logit says "no object".
        num_semantic_classes: of the semantic head.
        num_semantic_linears: 1: a linear layer, 2: two with a ReLU.
        in_channels: of superpoint features; point features have 3 more (x, y, z in front).
        d_model, num_heads, hidden_dim, dropout, activation_fn: of the layers.
        attn_mask: use the masks in attention.
        fix_attention: accepted as True, the form that was published.
        objectness_flag, bbox_flag: heads for mask quality and for boxes.
        iter_pred: accepted as True. share_attn_mlp, share_mask_mlp, temporal_attn: accepted as False.
        num_instance_queries, num_semantic_queries: accepted as 0: queries are superpoints.
    """

    def __init__(
        self,
        num_layers: int = 3,
        cross_attn_mode=('', 'SP', 'SP', 'SP'),
        mask_pred_mode=('SP', 'SP', 'P', 'P'),
        num_instance_classes: int = 1,
        num_semantic_classes: int = 200,
        num_semantic_linears: int = 1,
        in_channels: int = 96,
        d_model: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 1024,
        dropout: float = 0.0,
        activation_fn: str = 'gelu',
        attn_mask: bool = True,
        fix_attention: bool = True,
        objectness_flag: bool = False,
        bbox_flag: bool = False,
        iter_pred: bool = True,
        share_attn_mlp: bool = False,
        share_mask_mlp: bool = False,
        temporal_attn: bool = False,
        num_instance_queries: int = 0,
        num_semantic_queries: int = 0,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        fixed = dict(
            fix_attention=(fix_attention, True),
            iter_pred=(iter_pred, True),
            share_attn_mlp=(share_attn_mlp, False),
            share_mask_mlp=(share_mask_mlp, False),
            temporal_attn=(temporal_attn, False),
            num_instance_queries=(num_instance_queries, 0),
            num_semantic_queries=(num_semantic_queries, 0),
        )
        for name, (value, only) in fixed.items():
            if value != only:
                raise ConfigError(f'ScanNetMixQueryDecoder.{name} is {value!r}, only {only!r} is supported')
        self.cross_attn_mode, self.mask_pred_mode = tuple(cross_attn_mode), tuple(mask_pred_mode)
        if len(self.cross_attn_mode) != num_layers + 1 or len(self.mask_pred_mode) != num_layers + 1:
            raise ConfigError(
                f'ScanNetMixQueryDecoder: cross_attn_mode and mask_pred_mode need {num_layers + 1} entries, one '
                f'a layer and one before, found {len(self.cross_attn_mode)} and {len(self.mask_pred_mode)}'
            )
        if set(self.mask_pred_mode) - {'SP', 'P'} or set(self.cross_attn_mode[1:]) - {'SP', 'P'}:
            raise ConfigError("ScanNetMixQueryDecoder: modes are 'SP' or 'P'")
        self.num_layers, self.attn_mask = num_layers, attn_mask
        self.num_semantic_classes = num_semantic_classes
        self.input_proj = nn.Sequential(nn.Linear(in_channels, d_model), nn.LayerNorm(d_model), nn.ReLU())
        self.input_pts_proj = None
        if 'P' in self.cross_attn_mode:
            self.input_pts_proj = nn.Sequential(nn.Linear(in_channels + 3, d_model), nn.LayerNorm(d_model), nn.ReLU())
        self.query_proj = _mlp(in_channels, d_model, d_model)
        layers = range(num_layers)
        self.cross_attn_layers = nn.ModuleList(_Attention(d_model, num_heads, dropout) for _ in layers)
        self.self_attn_layers = nn.ModuleList(_Attention(d_model, num_heads, dropout) for _ in layers)
        self.ffn_layers = nn.ModuleList(_FFN(d_model, hidden_dim, dropout, activation_fn) for _ in layers)
        self.out_norm = nn.LayerNorm(d_model)
        self.out_cls = _mlp(d_model, d_model, num_instance_classes + 1)
        self.out_score = _mlp(d_model, d_model, 1) if objectness_flag else None
        self.out_reg = _mlp(d_model, d_model, 6) if bbox_flag else None
        self.x_mask = _mlp(in_channels, d_model, d_model)
        self.x_pts_mask = _mlp(in_channels + 3, d_model, d_model)
        if num_semantic_linears not in (1, 2):
            raise ConfigError(f'ScanNetMixQueryDecoder.num_semantic_linears: 1 or 2, found {num_semantic_linears}')
        semantic = nn.Linear if num_semantic_linears == 1 else lambda a, b: _mlp(a, a, b)
        self.out_sem = semantic(d_model, num_semantic_classes + 1)

    def forward(self, sp_feats, p_feats, queries, super_points, p_weights=None) -> Predictions:
        """Predictions of all stages.

        Args:
            sp_feats: list of (S, C) superpoint features.
            p_feats: list of (P, 3 + C) point features.
            queries: list of (Q, C), rows of sp_feats in any number and order.
            super_points: list of (P,) int64 superpoint of each point, 0..S-1.
            p_weights: list of (P, 1) weights of the points in their superpoints (``GeoAwarePooling``); None: 1.
        """
        samples = range(len(queries))
        sources = dict(SP=[self.input_proj(x) for x in sp_feats])
        if self.input_pts_proj is not None:
            sources['P'] = [self.input_pts_proj(x) for x in p_feats]
        features = dict(SP=[self.x_mask(x) for x in sp_feats], P=[self.x_pts_mask(x) for x in p_feats])
        queries = [self.query_proj(x) for x in queries]
        if p_weights is None:
            p_weights = [x.new_ones(len(x), 1) for x in p_feats]
        stages = [self._heads(queries, features, 0)]
        for layer in range(self.num_layers):
            wanted = self.cross_attn_mode[layer + 1]
            refined = []
            for i in samples:
                blocked = None
                if self.attn_mask:
                    blocked = self._blocked(stages[-1], i, wanted, super_points[i], p_weights[i], len(sp_feats[i]))
                x = self.cross_attn_layers[layer](queries[i], sources[wanted][i], blocked)
                refined.append(self.ffn_layers[layer](self.self_attn_layers[layer](x, x)))
            queries = refined
            stages.append(self._heads(queries, features, layer + 1))
        stages[-1].aux = stages[:-1]
        return stages[-1]

    def _heads(self, queries, features, stage: int) -> Predictions:
        mode, last = self.mask_pred_mode[stage], stage == self.num_layers
        normed = [self.out_norm(x) for x in queries]
        boxes = None
        if self.out_reg is not None:
            boxes = [self.out_reg(x).float() for x in normed]
            boxes = [torch.cat([x[:, :3], x[:, 3:].exp()], 1) for x in boxes]
        return Predictions(
            cls_preds=[self.out_cls(x) for x in normed],
            masks=[x @ y.t() for x, y in zip(normed, features[mode])],
            mask_mode=mode,
            sem_preds=[self.out_sem(x) for x in normed] if last else None,
            scores=None if self.out_score is None else [self.out_score(x) for x in normed],
            bboxes=boxes,
            queries=normed if last else None,
        )

    @staticmethod
    @torch.no_grad()
    def _blocked(stage: Predictions, sample: int, wanted: str, super_points, weights, superpoints: int) -> Tensor:
        """Where the queries of a sample do not look, (Q, S or P) bool; no row is blocked altogether."""
        blocked = stage.masks[sample].float().sigmoid() < 0.5
        if stage.mask_mode == 'P' and wanted == 'SP':
            # a superpoint is closed where most of its (weighted) points are, but for the most open ones
            share = group_mean((blocked * weights.t()).t(), super_points, superpoints).t()
            return (share > 0.5) & (share > share.amin(1, keepdim=True))
        if stage.mask_mode == 'SP' and wanted == 'P':
            blocked = blocked[:, super_points]
        return blocked & ~blocked.all(1, keepdim=True)
