"""What ESAM remembers of earlier frames, voxel by voxel."""

from dataclasses import dataclass

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...models.minkowski import MinkBatchNorm, MinkConv
from ...models.sparse import SparseSequential, SparseTensor
from ...ops.sparse_conv import linear_key


@dataclass
class LevelState:
    """Remembered voxels of one level, in order of arrival; the first ``count`` rows are in use.

    Attributes:
        coords: (capacity, 4) int32 (sample, x, y, z) in the level's grid.
        features: (capacity, C).
        time: (capacity,) int64, last frame that saw the voxel.
    """

    coords: Tensor
    features: Tensor
    time: Tensor
    count: int

    def __post_init__(self):
        self._boxed()

    def _boxed(self) -> None:
        """All rows in use become one block."""
        self.starts, self.boxes = [0, self.count], _box(self.coords[: self.count])[None]

    def near(self, low: Tensor, high: Tensor) -> Tensor:
        """Rows of the blocks that reach into the box from ``low`` to ``high``, both (3,). A block is what one frame has
        added, so a search costs what lies near, however long the scene has grown."""
        reach = ((self.boxes[:, :3] <= high) & (self.boxes[:, 3:] >= low)).all(1).nonzero().flatten().tolist()
        rows = [torch.arange(self.starts[i], self.starts[i + 1], device=self.coords.device) for i in reach]
        return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=self.coords.device)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates, features and times in use."""
        return self.coords[: self.count], self.features[: self.count], self.time[: self.count]

    def append(self, coords: Tensor, features: Tensor, time: int) -> None:
        """New voxels; in place (with room to grow) where no gradient is wanted."""
        total = self.count + len(coords)
        if len(coords):
            self.starts.append(total)
            self.boxes = torch.cat([self.boxes, _box(coords)[None]])
        if torch.is_grad_enabled():
            old = self.rows()
            self.coords = torch.cat([old[0], coords])
            self.features = torch.cat([old[1], features])
            self.time = torch.cat([old[2], old[2].new_full((len(coords),), time)])
        else:
            if total > len(self.coords):
                self._grow(max(total, 2 * len(self.coords)))
            part = slice(self.count, total)
            self.coords[part], self.features[part], self.time[part] = coords, features, time
        self.count = total

    def _grow(self, capacity: int) -> None:
        for name in ('coords', 'features', 'time'):
            old = getattr(self, name)
            new = old.new_empty((capacity, *old.shape[1:]))
            new[: self.count] = old[: self.count]
            setattr(self, name, new)

    def raise_to(self, rows: Tensor, features: Tensor, time: int) -> None:
        """The maximum of rows ``rows`` and ``features``, seen at ``time``."""
        if torch.is_grad_enabled():
            self.features = self.features.index_copy(0, rows, torch.maximum(self.features[rows], features))
            self.time = self.time.index_fill(0, rows, time)
        else:
            self.features[rows] = torch.maximum(self.features[rows], features)
            self.time[rows] = time

    def keep(self, wanted: Tensor) -> None:
        """Forget the rows in use where ``wanted`` (count,) is False."""
        rows = wanted.nonzero().flatten()
        self.coords, self.features, self.time = (values[rows] for values in self.rows())
        self.count = len(rows)
        self._boxed()


def _box(coords: Tensor) -> Tensor:
    """(V, 4) -> (6,) lowest and highest x, y, z."""
    if len(coords) == 0:
        return coords.new_zeros(6)
    return torch.cat([coords[:, 1:].amin(0), coords[:, 1:].amax(0)])


@MODELS.register_module()
class MultilevelMemory(BaseModule):
    """Voxel memory between the encoder and the decoder of the U-Net.

    The features of a frame are joined with those remembered nearby: the remembered voxels are the maximum over all
    frames; those within the frame's box (enlarged) go through two convolutions and a global mean, and what comes out at
    the frame's voxels is added to its features.

    Source: Xu et al., EmbodiedSAM, ICLR 2025.

    Args:
        in_channels: of the levels.
        scale: the frame's box is enlarged to this many times its size.
        queue: so many frames are remembered; -1 or 0: all.
        vmp_layer: levels that have a memory.
        zero_init: start as the identity (the last norm's weight is zero); False: as published.

    ``reset`` at the start of a scene. A frame costs what the voxels near it cost, whatever lies elsewhere.
    """

    def __init__(
        self,
        in_channels=(32, 64, 128, 256),
        scale: float = 2.5,
        queue: int = -1,
        vmp_layer=(0, 1, 2, 3),
        norm: str = 'batch',
        zero_init: bool = False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if norm != 'batch':
            raise ValueError(f"MultilevelMemory.norm: expected 'batch', found {norm!r}")
        if scale < 1:
            raise ValueError(f'MultilevelMemory.scale: expected 1 or more, found {scale}')
        self.scale, self.queue, self.vmp_layer = scale, queue, tuple(vmp_layer)
        self.conv_d1, self.conv_d3, self.conv_convert = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(in_channels):
            if level not in self.vmp_layer:
                for layers in (self.conv_d1, self.conv_d3, self.conv_convert):
                    layers.append(nn.Identity())
                continue
            for layers, dilation in ((self.conv_d1, 1), (self.conv_d3, 3)):
                layers.append(
                    SparseSequential(
                        MinkConv(channels, channels, 3, dilation=dilation),
                        MinkBatchNorm(channels),
                        nn.ReLU(inplace=True),
                    )
                )
            convert = SparseSequential(MinkConv(3 * channels, channels, 1), MinkBatchNorm(channels))
            if zero_init:
                nn.init.zeros_(convert[1].bn.weight)
            self.conv_convert.append(convert)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.states: dict[int, LevelState] = {}
        self.frame = 0

    def forward(self, levels: list[SparseTensor]) -> list[SparseTensor]:
        """The next frame's levels, with what is remembered; the same voxels."""
        levels = [self._level(level, x) if level in self.vmp_layer else x for level, x in enumerate(levels)]
        self.frame += 1
        return levels

    def _level(self, level: int, x: SparseTensor) -> SparseTensor:
        state = self.states.get(level)
        if state is None:
            x = x.replace_feature(torch.relu(self._context(level, x) + x.features))
            time = torch.full((len(x.coords),), self.frame, device=x.coords.device)
            features = x.features if torch.is_grad_enabled() else x.features.clone()
            self.states[level] = LevelState(x.coords, features, time, len(x.coords))
            return x
        near = self._near(state, x)  # rows of the memory inside the enlarged box
        known, row = _find(state.coords[near], x)
        state.raise_to(near[row[known]], x.features[known], self.frame)
        fresh = (~known).nonzero().flatten()
        place = torch.empty_like(row)  # row of each present voxel in the memory
        place[known] = near[row[known]]
        place[fresh] = state.count + torch.arange(len(fresh), device=row.device)
        state.append(x.coords[fresh], x.features[fresh], self.frame)
        if self.queue > 0:
            time = state.rows()[2]
            if int(time.max() - time.min()) >= self.queue - 1:
                wanted = (time > time.min()) | (time == self.frame)
                moved = wanted.cumsum(0) - 1
                near, place = moved[near[wanted[near]]], moved[place]
                state.keep(wanted)
        rows = torch.cat([near, torch.arange(state.count - len(fresh), state.count, device=near.device)])
        region = SparseTensor(state.features[rows], state.coords[rows], x.spatial_shape, x.batch_size)
        at = torch.empty(state.count, dtype=torch.int64, device=rows.device)
        at[rows] = torch.arange(len(rows), device=rows.device)
        context = self._context(level, region)[at[place]]
        return x.replace_feature(torch.relu(context + x.features))

    def _context(self, level: int, x: SparseTensor) -> Tensor:
        sample = x.coords[:, 0].long()
        total = x.features.new_zeros(x.batch_size, x.features.shape[1]).index_add(0, sample, x.features)
        mean = total / torch.bincount(sample, minlength=x.batch_size).clamp(min=1)[:, None]
        joined = [self.conv_d1[level](x).features, self.conv_d3[level](x).features, mean[sample]]
        return self.conv_convert[level](x.replace_feature(torch.cat(joined, 1))).features

    def _near(self, state: LevelState, x: SparseTensor) -> Tensor:
        """Rows of the memory in the box of x's voxels of the same sample, enlarged."""
        found = []
        for sample in range(x.batch_size):
            own = x.coords[x.coords[:, 0] == sample, 1:]
            if len(own) == 0:
                continue
            low, high = own.amin(0), own.amax(0)
            margin = (high - low) * ((self.scale - 1) / 2)
            rows = state.near(low - margin, high + margin)
            coords = state.coords[rows]
            within = ((coords[:, 1:] >= low - margin) & (coords[:, 1:] <= high + margin)).all(1)
            found.append(rows[within & (coords[:, 0] == sample)])
        return torch.cat(found) if found else state.coords.new_zeros(0, dtype=torch.int64)


def _find(coords: Tensor, x: SparseTensor) -> tuple[Tensor, Tensor]:
    """Whether each voxel of x is among ``coords``, and at which row (0 where it is not)."""
    if len(coords) == 0:
        nothing = torch.zeros(len(x.coords), device=coords.device)
        return nothing.bool(), nothing.long()
    key, order = linear_key(coords, x.spatial_shape).sort()
    wanted = linear_key(x.coords, x.spatial_shape)
    place = torch.searchsorted(key, wanted).clamp_(max=len(key) - 1)
    return key[place] == wanted, order[place]
