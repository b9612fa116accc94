"""FB-OCC's backward projection: queries on the ground plane gather image features where their anchors project to.

Classes carry the published names, so that official configs and weights fit.
Sources: Li et al., "FB-BEV: BEV Representation from Forward-Backward View Transformations", ICCV 2023; the layer after
Li et al., "BEVFormer", ECCV 2022.
"""

import copy
import math
from typing import NamedTuple

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import nn

from ...ops import deform_attn, depth_deform_attn


class VisibleQueries(NamedTuple):
    """The (camera, query) pairs with at least one anchor in view, R rows in all, A anchors each.

    Attributes:
        query: (R,) int64 number ``b * Q + q`` of the query.
        image: (R,) int64 number ``b * N + n`` of the camera image.
        uv: (R, A, 2) projections of the anchors, in [0, 1] inside the image.
        depth: (R, A) metres along the camera's axis.
    """

    query: torch.Tensor
    image: torch.Tensor
    uv: torch.Tensor
    depth: torch.Tensor


def ring_bias(num_heads, num_points, num_anchors=1):
    """(H * P * 2,) first offsets, in feature pixels: head h looks in the direction 2 pi h / H (scaled to a square),
    point i goes i + 1 steps; the A anchors of a point (fastest) start alike."""
    angle = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, num_points // num_anchors + 1, dtype=torch.float32).repeat_interleave(num_anchors)
    return (direction[:, None] * steps[:, None]).flatten()


class _DeformableBase(BaseModule):
    """The linear layers of deformable attention over one feature level.

    Args:
        embed_dims: channels, a multiple of ``num_heads``.
        num_heads, num_points: heads and points of each.
        num_levels: must be 1.
        num_anchors: anchors that the points are shared among, the anchor fastest.
    """

    def __init__(self, embed_dims, num_heads, num_points, num_levels=1, num_anchors=1, init_cfg=None):
        super().__init__(init_cfg)
        if embed_dims % num_heads or num_points % num_anchors or num_levels != 1:
            raise ValueError(
                f'{type(self).__name__}: embed_dims={embed_dims} must be a multiple of num_heads={num_heads}, '
                f'num_points={num_points} of the {num_anchors} anchors, and num_levels={num_levels} must be 1'
            )
        self.embed_dims, self.num_heads, self.num_points = embed_dims, num_heads, num_points
        self.num_anchors = num_anchors
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)

    def init_weights(self):
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring_bias(self.num_heads, self.num_points, self.num_anchors))
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.zeros_(self.value_proj.bias)
        self._is_init = True

    def places(self, query, shape):
        """Offsets (..., H, 1, P, 2) in shares of the map ``shape`` (h, w), and softmax weights (..., H, 1, P)."""
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, 1, self.num_points, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, 1, self.num_points)).softmax(dim=-1)
        return offsets / offsets.new_tensor([shape[1], shape[0]]), weights

    def values(self, features):
        """(M, S, C) -> (M, S, H, C / H)."""
        return self.value_proj(features).unflatten(-1, (self.num_heads, -1))


class BEVSelfAttention(_DeformableBase):
    """Deformable self-attention among the queries of the plane, with the residual added.

    Parameters are named as those of mmcv's ``MultiScaleDeformableAttention``, which the published configs name here.
    ``forward``: query (B, Q, C), position (B or 1, Q, C), shape (Y, X) -> (B, Q, C). Values carry no position.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_levels=1, num_points=4, dropout=0.0, init_cfg=None):
        super().__init__(embed_dims, num_heads, num_points, num_levels, init_cfg=init_cfg)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self):
        super().init_weights()
        nn.init.xavier_uniform_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, query, position, shape):
        offsets, weights = self.places(query + position, shape)
        height, width = shape
        v, u = torch.meshgrid(
            (torch.arange(height, device=query.device) + 0.5) / height,
            (torch.arange(width, device=query.device) + 0.5) / width,
            indexing='ij',
        )
        centre = torch.stack([u, v], dim=-1).view(1, -1, 1, 1, 1, 2)
        found = deform_attn(self.values(query), [shape], centre + offsets, weights)
        return self.dropout(self.output_proj(found)) + query


@MODELS.register_module()
class DA_MSDeformableAttention(_DeformableBase):
    """Depth-aware deformable attention of lifted queries into camera images.

    Point p belongs to anchor ``p % num_Z_anchors``; its softmax weight is multiplied by how probable the anchor's depth
    is at the anchor's projection, and not normalised again.

    Args:
        embed_dims, num_heads, num_points, num_levels: see ``_DeformableBase``.
        num_Z_anchors: anchors of a query.
    """

    def __init__(self, embed_dims=256, num_heads=8, num_levels=1, num_points=8, num_Z_anchors=4, init_cfg=None):
        super().__init__(embed_dims, num_heads, num_points, num_levels, num_Z_anchors, init_cfg)

    def forward(self, rows, features, shape, depth, visible: VisibleQueries, bins):
        """Gather for the visible rows.

        Args:
            rows: (R, C) queries with their position.
            features: (B*N, h*w, C).
            shape: (h, w).
            depth: (B*N, D, h, w) probabilities.
            visible: R rows.
            bins: (R, A) int64 depth bin of each anchor.

        Returns:
            (R, C).
        """
        offsets, weights = self.places(rows, shape)
        repeats = self.num_points // self.num_anchors
        centre = visible.uv.repeat(1, repeats, 1)[:, None, None]
        return depth_deform_attn(
            self.values(features), [shape], centre + offsets, weights, depth, visible.uv, bins, visible.image
        )


@MODELS.register_module()
class DA_SpatialCrossAttention(BaseModule):
    """Cross-attention from queries to all cameras that see one of their anchors: the mean over those cameras.

    Args:
        embed_dims: channels.
        dbound: (lower, upper, step) of the depth bins, metres.
        pc_range: accepted for the published configs.
        dropout: of the output.
        deformable_attention: config of ``DA_MSDeformableAttention``.
        layer_scale: first value of a learnt factor per channel of the output; None: none.
    """

    def __init__(
        self, embed_dims=256, dbound=None, pc_range=None, dropout=0.0, deformable_attention=None, layer_scale=None,
        init_cfg=None,
    ):  # fmt: skip
        super().__init__(init_cfg)
        self.depth_bound = tuple(float(value) for value in dbound)
        self.deformable_attention = MODELS.build(
            dict(type='DA_MSDeformableAttention', embed_dims=embed_dims) | dict(deformable_attention or {})
        )
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.layer_scale = None
        if layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.full((embed_dims,), float(layer_scale)))

    def init_weights(self):
        super().init_weights()
        nn.init.xavier_uniform_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, query, position, features, shape, depth, visible: VisibleQueries):
        """(B, Q, C) -> (B, Q, C), the residual (without position) added; other arguments as in the attention."""
        batch, queries, channels = query.shape
        lower, _, step = self.depth_bound
        bins = ((visible.depth - lower) / step).floor().clamp(0, depth.shape[1] - 1).long()
        rows = (query + position).reshape(-1, channels)[visible.query]
        found = self.deformable_attention(rows, features, shape, depth, visible, bins)
        total = found.new_zeros(batch * queries, channels).index_add(0, visible.query, found)
        cameras = total.new_zeros(batch * queries).index_add(0, visible.query, torch.ones_like(found[:, 0]))
        output = self.output_proj((total / cameras.clamp(min=1)[:, None]).view_as(query))
        if self.layer_scale is not None:
            output = output * self.layer_scale
        return self.dropout(output) + query


@MODELS.register_module()
class BEVFormerEncoderLayer(BaseModule):
    """Self-attention, cross-attention, feed-forward, each followed by a layer norm, in ``operation_order``.

    Args:
        attn_cfgs: of the self-attention (mmcv's name ``MultiScaleDeformableAttention`` means ``BEVSelfAttention``) and
            of the cross-attention, in the order in which they are used.
        ffn_cfgs: of mmcv's FFN; ``embed_dims`` follows.
        operation_order: of 'self_attn', 'cross_attn', 'norm', 'ffn'.
        feedforward_channels, ffn_dropout: where ``ffn_cfgs`` does not say.
    """

    def __init__(
        self,
        attn_cfgs,
        ffn_cfgs=None,
        operation_order=('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
        feedforward_channels=512,
        ffn_dropout=0.0,
        norm_cfg=None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.operation_order = tuple(operation_order)
        kinds = [name for name in self.operation_order if name.endswith('attn')]
        if len(kinds) != len(attn_cfgs) or set(self.operation_order) - {'self_attn', 'cross_attn', 'norm', 'ffn'}:
            raise ValueError(f'operation_order {self.operation_order} does not fit {len(attn_cfgs)} attn_cfgs')
        attentions = []
        for kind, config in zip(kinds, attn_cfgs):
            config = dict(config)
            name = config.pop('type')
            if kind == 'self_attn' and name in ('MultiScaleDeformableAttention', 'BEVSelfAttention'):
                attentions.append(BEVSelfAttention(**config))
            else:
                attentions.append(MODELS.build(dict(config, type=name)))
        self.attentions = ModuleList(attentions)
        self.embed_dims = attn_cfgs[0]['embed_dims']
        ffn = dict(feedforward_channels=feedforward_channels, ffn_drop=ffn_dropout) | dict(ffn_cfgs or {})
        ffn.pop('type', None)
        ffn['embed_dims'] = self.embed_dims
        self.ffns = ModuleList([FFN(**copy.deepcopy(ffn)) for _ in range(self.operation_order.count('ffn'))])
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(
            [build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(self.operation_order.count('norm'))]
        )

    def init_weights(self):
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and 'attentions' not in name:
                nn.init.xavier_uniform_(parameter)
        self.attentions.init_weights()
        self._is_init = True

    def forward(self, query, position, bev_shape, features, shape, depth, visible):
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        for name in self.operation_order:
            if name == 'self_attn':
                query = next(attentions)(query, position, bev_shape)
            elif name == 'cross_attn':
                query = next(attentions)(query, position, features, shape, depth, visible)
            elif name == 'norm':
                query = next(norms)(query)
            else:
                query = next(ffns)(query)
        return query


@MODELS.register_module()
class bevformer_encoder(BaseModule):
    """A stack of layers over the queries of the plane, and the geometry that they share.

    Args:
        transformerlayers: config of a layer, or a list of ``num_layers`` of them.
        num_layers: layers.
        grid_config: ``x, y, z`` (lower, upper, step), metres: queries stand at the cell centres of x and y, their
            anchors at those of z.
        data_config: ``input_size`` (H, W) of the network's images.
        pc_range, return_intermediate: accepted for the published configs; the latter must be False.
    """

    def __init__(
        self, transformerlayers, num_layers, grid_config, data_config, pc_range=None, return_intermediate=False,
        init_cfg=None,
    ):  # fmt: skip
        super().__init__(init_cfg)
        if return_intermediate:
            raise ValueError('bevformer_encoder: return_intermediate=True is not supported')
        if isinstance(transformerlayers, dict):
            transformerlayers = [copy.deepcopy(transformerlayers) for _ in range(num_layers)]
        self.layers = ModuleList([MODELS.build(layer) for layer in transformerlayers])
        self.embed_dims = self.layers[0].embed_dims
        self.input_size = tuple(data_config['input_size'])
        axes = [
            lower + step * (torch.arange(round((upper - lower) / step), dtype=torch.float64) + 0.5)
            for lower, upper, step in (grid_config[axis] for axis in 'xyz')
        ]
        y, x, z = torch.meshgrid(axes[1], axes[0], axes[2], indexing='ij')
        self.register_buffer('anchors', torch.stack([x, y, z], dim=-1), persistent=False)  # (Y, X, A, 3) metres

    def project(self, sensor2keyego, intrins, post_rots, post_trans, bda):
        """Project the anchors into the cameras.

        Args:
            sensor2keyego, intrins, post_rots, post_trans, bda: as in ``LSSViewTransformer.ego_points``.

        Returns:
            uv (B, N, Y*X, A, 2) float32 in shares of the image, depth (B, N, Y*X, A) metres, valid (B, N, Y*X, A).
        """
        eps = 1e-5
        sensor2keyego, intrins, post_rots, post_trans, bda = (
            matrix.double() for matrix in (sensor2keyego, intrins, post_rots, post_trans, bda)
        )
        points = self.anchors.double().view(1, 1, -1, 3) @ torch.linalg.inv(bda)[:, None].transpose(-1, -2)
        points = points - sensor2keyego[..., None, :3, 3]
        to_image = intrins @ torch.linalg.inv(sensor2keyego[..., :3, :3])
        points = points @ to_image.transpose(-1, -2)  # (B, N, Q*A, 3): u d, v d, d
        depth = points[..., 2]
        uv = points[..., :2] / depth.clamp(min=eps)[..., None]
        uv = uv @ post_rots[..., :2, :2].transpose(-1, -2) + post_trans[..., None, :2]
        uv = (uv / uv.new_tensor([self.input_size[1], self.input_size[0]])).float()
        depth = depth.float()
        valid = (depth > eps) & ((uv > eps) & (uv < 1 - eps)).all(dim=-1)
        anchors = self.anchors.shape[2]
        return uv.unflatten(2, (-1, anchors)), depth.unflatten(2, (-1, anchors)), valid.unflatten(2, (-1, anchors))

    def visible(self, uv, depth, valid) -> VisibleQueries:
        """The rows for the attention from ``project``'s results."""
        cameras, queries = valid.shape[1:3]
        sample, camera, query = valid.any(dim=-1).nonzero().unbind(dim=1)
        return VisibleQueries(
            sample * queries + query,
            sample * cameras + camera,
            uv[sample, camera, query],
            depth[sample, camera, query],
        )

    def forward(self, query, position, features, shape, depth, visible):
        """Encode queries (B, Y*X, C); other arguments as in the attention."""
        bev_shape = tuple(self.anchors.shape[:2])
        for layer in self.layers:
            query = layer(query, position, bev_shape, features, shape, depth, visible)
        return query


@MODELS.register_module()
class BEVFormer(BaseModule):
    """Holds the encoder.

    Args:
        encoder: config of ``bevformer_encoder``.
        embed_dims: channels.
        use_cams_embeds: must be False. ``cams_embeds`` (num_cams, C) is a frozen parameter without effect that the
            published checkpoints hold.
        num_cams: its rows.
    """

    def __init__(self, encoder, embed_dims=256, use_cams_embeds=False, num_cams=6, init_cfg=None):
        super().__init__(init_cfg)
        if use_cams_embeds:
            raise ValueError('BEVFormer: use_cams_embeds=True is not supported')
        self.encoder = MODELS.build(encoder)
        self.cams_embeds = nn.Parameter(torch.zeros(num_cams, embed_dims), requires_grad=False)

    def forward(self, *args, **kwargs):
        return self.encoder(*args, **kwargs)


@MODELS.register_module()
class CustormLearnedPositionalEncoding(BaseModule):
    """Learnt position of the cells of a plane: column and row embeddings side by side.

    Args:
        num_feats: channels of each.
        row_num_embed, col_num_embed: cells along Y and X.

    ``forward()`` returns (Y*X, 2 * num_feats), X fastest, column embedding first.
    """

    def __init__(self, num_feats, row_num_embed=50, col_num_embed=50, init_cfg=None):
        super().__init__(init_cfg)
        self.row_embed = nn.Embedding(row_num_embed, num_feats)
        self.col_embed = nn.Embedding(col_num_embed, num_feats)

    def init_weights(self):
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)
        self._is_init = True

    def forward(self):
        rows, columns = self.row_embed.weight, self.col_embed.weight
        column = columns[None].expand(len(rows), -1, -1)
        row = rows[:, None].expand(-1, len(columns), -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


@MODELS.register_module()
class BackwardProjection(BaseModule):
    """Refines a bird's-eye-view feature by attention into the camera images.

    Args:
        transformer, positional_encoding: configs.
        bev_h, bev_w: cells along Y and X.
        in_channels, out_channels: channels; equal.
        pc_range: accepted for the published configs.
        use_zero_embedding: leave the learnt query embedding out (its parameter stays).
    """

    def __init__(
        self,
        transformer,
        positional_encoding,
        bev_h=30,
        bev_w=30,
        in_channels=64,
        out_channels=64,
        pc_range=None,
        use_zero_embedding=False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if in_channels != out_channels:
            raise ValueError(f'BackwardProjection: in_channels {in_channels} and out_channels {out_channels} differ')
        self.bev_h, self.bev_w = bev_h, bev_w
        self.use_zero_embedding = use_zero_embedding
        self.positional_encoding = MODELS.build(positional_encoding)
        self.transformer = MODELS.build(transformer)
        self.bev_embedding = nn.Embedding(bev_h * bev_w, out_channels)
        cells = tuple(self.transformer.encoder.anchors.shape[:2])
        if cells != (bev_h, bev_w):
            raise ValueError(f'BackwardProjection: bev_h x bev_w is {(bev_h, bev_w)}, the encoder grid has {cells}')

    def forward(self, context, depth, lss_bev, cameras):
        """Attend.

        Args:
            context: (B, N, C, h, w) features that are attended.
            depth: (B, N, D, h, w) probabilities.
            lss_bev: (B, C, Y, X) what the queries start from.
            cameras: (sensor2keyego, intrins, post_rots, post_trans, bda), see ``bevformer_encoder.project``.

        Returns:
            (B, C, Y, X) float32; the layer always computes in float32.
        """
        with torch.autocast(context.device.type, enabled=False):
            encoder = self.transformer.encoder
            visible = encoder.visible(*encoder.project(*cameras))
            return self.attend(context.float(), depth.float(), lss_bev.float(), visible)

    def attend(self, context, depth, lss_bev, visible: VisibleQueries):
        """``forward`` with the geometry settled; all float32."""
        query = lss_bev.flatten(2).transpose(1, 2)
        if not self.use_zero_embedding:
            query = query + self.bev_embedding.weight
        features = context.flatten(0, 1).flatten(2).transpose(1, 2)
        shape = tuple(context.shape[-2:])
        bev = self.transformer(query, self.positional_encoding(), features, shape, depth.flatten(0, 1), visible)
        return bev.transpose(1, 2).unflatten(2, (self.bev_h, self.bev_w))
