// Trilinear upsampling by a whole factor s at chosen voxels only. Voxel i of the fine grid has its centre at
// (i + 1/2) / s - 1/2 in the coarse grid, cut off at its outermost centres (interpolate with align_corners=False):
//   out[r, :]    = sum over the 8 coarse voxels v around row r of  w(r, v) x[v, :]
//   dx[v, :]     = sum over the rows r next to v of  w(r, v) dout[r, :]
// with w the product of the three shares. Backward the rows are sorted by the lowest of their voxels, so that each
// coarse voxel sums the rows of eight of these groups: no atomics, deterministic.
#pragma once

#include <cstdint>

#include "common.h"

namespace occforge {

// Grids are (B, Z, Y, X); the fine one is `scale` times as long along Z, Y and X.
struct UpsampleGrid {
  int64_t batch, size[3], scale;

  OCC_HD int64_t coarse() const { return batch * size[0] * size[1] * size[2]; }
  OCC_HD int64_t fine() const { return coarse() * scale * scale * scale; }
};

// Where a fine voxel lies: the lowest coarse voxel around it (linear index), and along each axis the share of the next
// one, 0 where there is none.
template <typename acc_t>
struct UpsamplePlace {
  int64_t lowest;
  acc_t share[3];
};

template <typename acc_t>
OCC_HD UpsamplePlace<acc_t> upsample_place(const UpsampleGrid& grid, int64_t row) {
  UpsamplePlace<acc_t> place;
  int64_t low[3] = {0, 0, 0};
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t length = grid.size[axis] * grid.scale, fine = row % length;
    row /= length;
    acc_t at = (static_cast<acc_t>(fine) + acc_t(0.5)) / static_cast<acc_t>(grid.scale) - acc_t(0.5);
    if (at < 0) at = 0;
    low[axis] = static_cast<int64_t>(at);
    place.share[axis] = at - static_cast<acc_t>(low[axis]);
    if (low[axis] >= grid.size[axis] - 1) {
      low[axis] = grid.size[axis] - 1;
      place.share[axis] = 0;
    }
  }
  place.lowest = ((row * grid.size[0] + low[0]) * grid.size[1] + low[1]) * grid.size[2] + low[2];
  return place;
}

// Steps from the lowest voxel to corner k = 4 dz + 2 dy + dx, and that corner's weight.
OCC_HD int64_t corner_step(const UpsampleGrid& grid, int corner) {
  return (corner >> 2) * grid.size[1] * grid.size[2] + (corner >> 1 & 1) * grid.size[2] + (corner & 1);
}

template <typename acc_t>
OCC_HD acc_t corner_weight(const acc_t* share, int corner) {
  acc_t weight = 1;
  for (int axis = 0; axis < 3; ++axis) weight *= corner >> (2 - axis) & 1 ? share[axis] : acc_t(1) - share[axis];
  return weight;
}

// Whether coarse voxel `cell` is corner `corner` of some lowest voxel: that one exists.
OCC_HD bool has_corner(const UpsampleGrid& grid, int64_t cell, int corner) {
  const int64_t x = cell % grid.size[2], y = cell / grid.size[2] % grid.size[1];
  const int64_t z = cell / (grid.size[2] * grid.size[1]) % grid.size[0];
  return (!(corner & 1) || x > 0) && (!(corner & 2) || y > 0) && (!(corner & 4) || z > 0);
}

}  // namespace occforge
