"""Small self-attention over voxels or pixels, the identity before training."""

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.sparse import SparseTensor
from ...ops.sparse_conv import linear_key
from .pooling import group_mean

_CHUNK = 2048  # rows of a distance matrix at a time


def nearest(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices (Q, min(k, P)) of the nearest of ``points`` (P, 3) to each of ``queries`` (Q, 3)."""
    k = min(k, len(points))
    if points.device.type == 'cpu' and len(points):  # a tree needs no table of all distances
        distances, indices = cKDTree(points.detach().numpy()).query(queries.detach().numpy(), k=range(1, k + 1))
        return torch.from_numpy(distances).to(points), torch.from_numpy(indices).long()
    return _nearest_of_all(queries, points, k)


def _nearest_of_all(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    parts = [
        torch.cdist(part, points, compute_mode='donot_use_mm_for_euclid_dist').topk(k, 1, largest=False)
        for part in queries.split(_CHUNK)
    ]
    if not parts:
        return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=queries.device)
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _zero_linear(inputs: int, out: int) -> nn.Linear:
    layer = nn.Linear(inputs, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@MODELS.register_module()
class TinySAModule(BaseModule):
    """One attention block over tokens in space, each looking at its neighbours.

    Args:
        in_channels: of the tokens.
        num_heads: of the attention.
        radius: metres, to scale the offsets of the position code.
        ffn_ratio: hidden channels of the MLP over ``in_channels``.

    The last layers of both branches start at zero, so the block starts as the identity.
    """

    def __init__(
        self, in_channels: int = 96, num_heads: int = 4, radius: float = 0.3, ffn_ratio: int = 4, init_cfg=None
    ):
        super().__init__(init_cfg)
        if in_channels % num_heads:
            raise ValueError(f'TinySAModule: {in_channels} channels cannot be split among {num_heads} heads')
        c = in_channels
        self.num_heads, self.radius = num_heads, radius
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.q, self.k, self.v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.proj = _zero_linear(c, c)
        self.mlp = nn.Sequential(nn.Linear(c, ffn_ratio * c), nn.GELU(), _zero_linear(ffn_ratio * c, c))
        self.pos_embed = nn.Sequential(nn.Linear(3, c), nn.ReLU(), nn.Linear(c, num_heads))

    def forward(self, x: Tensor, xyz: Tensor, neighbours: Tensor, valid: Tensor) -> Tensor:
        """(M, C) -> (M, C).

        Args:
            x: tokens.
            xyz: (M, 3) metres.
            neighbours: (M, K) int64 rows of x.
            valid: (M, K) bool; at least one a row.
        """
        h, shape = self.norm1(x), (*neighbours.shape, self.num_heads, -1)
        rows = neighbours.flatten()
        # index_select adds its gradients up faster than an index does, and sums are faster than thousands of products
        # of small matrices
        q = self.q(h).unflatten(1, (1, self.num_heads, -1))
        k, v = (layer(h).index_select(0, rows).view(shape) for layer in (self.k, self.v))
        logits = (q * k).sum(-1) / q.shape[-1] ** 0.5
        logits = logits + self.pos_embed((xyz[neighbours] - xyz[:, None]) / self.radius)
        attention = logits.masked_fill(~valid[..., None], -torch.inf).softmax(1)
        x = x + self.proj((attention[..., None] * v).sum(1).flatten(1))
        return x + self.mlp(self.norm2(x))


@MODELS.register_module(name=['TinySANeck', 'TinySA'])
class TinySANeck(BaseModule):
    """Self-attention among blocks of voxels, added to the voxels. The identity before training.

    Voxels are averaged in cells, the cells of a sample (never those of another) attend to their neighbours, and what
    changed is given back to the voxels from the nearest cells. Nothing is random, and the order of the voxels does not
    matter.

    Args:
        in_channels: of the voxels; ``dim`` is another name of it.
        num_heads: of the attention.
        radius: metres, a cell sees others up to there.
        max_k: cells that one sees, at most.
        cell: voxels along the side of a cell.
        num_layers: attention blocks.
        interp_k: cells from which a voxel takes its change, weighted by the inverse squared distance.
        ffn_ratio: see ``TinySAModule``.
        voxel_size: metres.
        sample_ratio: share of the voxels that become cells, in place of ``cell``.
    """

    def __init__(
        self,
        in_channels: int | None = None,
        num_heads: int = 4,
        radius: float = 0.3,
        max_k: int = 32,
        cell: int = 4,
        num_layers: int = 2,
        interp_k: int = 3,
        ffn_ratio: int = 4,
        voxel_size: float = 0.02,
        dim: int | None = None,
        sample_ratio: float | None = None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        channels = in_channels if in_channels is not None else dim if dim is not None else 96
        if sample_ratio is not None:
            cell = max(1, round(2 * sample_ratio**-0.5))
        if min(max_k, cell, interp_k) < 1 or radius <= 0:
            raise ValueError('TinySANeck: max_k, cell and interp_k must be 1 or more, radius above 0')
        self.radius, self.max_k, self.cell, self.interp_k = radius, max_k, cell, interp_k
        self.voxel_size = voxel_size
        self.layers = nn.ModuleList(
            TinySAModule(channels, num_heads, radius, ffn_ratio) for _ in range(num_layers)
        )  # fmt: skip

    def forward(self, x: SparseTensor) -> SparseTensor:
        """The same voxels, other features."""
        if len(x.coords) == 0:
            return x
        with torch.autocast(x.features.device.type, enabled=False):
            return x.replace_feature(self._attend(x, x.features.float()))

    def _attend(self, x: SparseTensor, features: Tensor) -> Tensor:
        coords = x.coords.long()
        # metres from a corner that is a whole number of cells away: float32 keeps them apart anywhere
        origin = coords[:, 1:].amin(0) // self.cell * self.cell
        xyz = (coords[:, 1:] - origin).float() * self.voxel_size
        cells = torch.cat([coords[:, :1], coords[:, 1:] // self.cell], 1)
        _, member = linear_key(cells, [size // self.cell + 1 for size in x.spatial_shape]).unique(return_inverse=True)
        count = int(member.max()) + 1
        tokens, place = group_mean(features, member, count), group_mean(xyz, member, count)
        sample = coords.new_zeros(count).index_copy_(0, member, coords[:, 0])
        width = min(self.max_k, count)
        near = torch.zeros(count, width, dtype=torch.int64, device=tokens.device)
        valid = torch.zeros(count, width, dtype=torch.bool, device=tokens.device)
        give = torch.zeros(len(coords), min(self.interp_k, count), dtype=torch.int64, device=tokens.device)
        share = features.new_zeros(give.shape)
        for b in range(x.batch_size):
            rows, voxels = (sample == b).nonzero().flatten(), (coords[:, 0] == b).nonzero().flatten()
            if len(rows) == 0:
                continue
            distance, index = nearest(place[rows], place[rows], width)
            near[rows, : index.shape[1]] = rows[index]
            valid[rows, : index.shape[1]] = distance <= self.radius
            distance, index = nearest(xyz[voxels], place[rows], self.interp_k)
            give[voxels, : index.shape[1]] = rows[index]
            weight = 1 / (distance**2 + 1e-6)
            share[voxels, : index.shape[1]] = weight / weight.sum(1, keepdim=True)
        before = tokens
        for layer in self.layers:
            tokens = layer(tokens, place, near, valid)
        change = tokens - before
        change = change.index_select(0, give.flatten()).view(*give.shape, -1)
        return features + (share[..., None] * change).sum(1)


@MODELS.register_module()
class TinySA2D(BaseModule):
    """Self-attention inside windows of a map, the identity before training.

    Args:
        dim: channels.
        num_heads: of the attention.
        window: pixels along the side.
        ffn_ratio: hidden channels of the MLP over ``dim``.
    """

    def __init__(self, dim: int = 256, num_heads: int = 4, window: int = 8, ffn_ratio: int = 4, init_cfg=None):
        super().__init__(init_cfg)
        if dim % num_heads:
            raise ValueError(f'TinySA2D: {dim} channels cannot be split among {num_heads} heads')
        self.num_heads, self.window = num_heads, window
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = _zero_linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_ratio * dim), nn.GELU(), _zero_linear(ffn_ratio * dim, dim))
        self.pos_embed = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij'), -1).reshape(
            -1, 2
        )
        offset = place[:, None] - place[None] + window - 1
        self.register_buffer('offset', offset[..., 0] * (2 * window - 1) + offset[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        height, width, size = *x.shape[2:], self.window
        pad = (-width % size, -height % size)
        padded = F.pad(x, (0, pad[0], 0, pad[1])).permute(0, 2, 3, 1)
        inside = F.pad(x.new_ones(1, 1, height, width), (0, pad[0], 0, pad[1])).permute(0, 2, 3, 1)
        rows, columns = padded.shape[1] // size, padded.shape[2] // size

        def windows(values):
            values = values.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
            return values.flatten(3, 4).flatten(0, 2)  # (B * windows, pixels, C)

        tokens = windows(padded)
        bias = self.pos_embed[self.offset].permute(2, 0, 1)  # (heads, pixels, pixels)
        blocked = (windows(inside)[..., 0] < 0.5).repeat(len(x), 1)  # no window is padding alone
        bias = bias[None].masked_fill(blocked[:, None, None], -torch.inf)
        h = self.norm1(tokens)
        q, k, v = (layer(h).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        tokens = tokens + self.proj(out.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        tokens = tokens.unflatten(0, (len(x), rows, columns)).unflatten(3, (size, size)).transpose(2, 3)
        tokens = tokens.flatten(3, 4).flatten(1, 2)
        return tokens[:, :height, :width].permute(0, 3, 1, 2)
