// Dynamic voxelisation: every point inside the grid is kept, points of one cell are reduced to one row.
//
// The cell of a point is floor((p - lower) / voxel_size) in the points' own precision. Cells are numbered
// ((b X + x) Y + y) Z + z, so sorting by that number (stably) lists the voxels in lexicographic order of (b, x, y, z)
// and the points of each in their own order: every result is the same whatever the number of threads.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace occforge {

enum class Reduce : int64_t { kSum = 0, kMean = 1, kMax = 2 };

struct CellFrame {
  double lower[3];
  double voxel_size[3];
  int64_t size[3];
};

// Number of the point's cell inside the grid of its sample, or -1 outside (NaN and infinity included).
template <typename scalar_t>
OCC_HD int64_t grid_cell(const CellFrame& frame, const scalar_t* point) {
  int64_t cell = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const scalar_t at =
        (point[axis] - static_cast<scalar_t>(frame.lower[axis])) / static_cast<scalar_t>(frame.voxel_size[axis]);
    if (!(at >= scalar_t(0) && at < static_cast<scalar_t>(frame.size[axis]))) return -1;
    cell = cell * frame.size[axis] + static_cast<int64_t>(at);
  }
  return cell;
}

// (b, x, y, z) of a cell number.
OCC_HD void cell_coordinates(const CellFrame& frame, int64_t cell, int32_t* coords) {
  for (int axis = 2; axis >= 0; --axis) {
    coords[axis + 1] = static_cast<int32_t>(cell % frame.size[axis]);
    cell /= frame.size[axis];
  }
  coords[0] = static_cast<int32_t>(cell);
}

// W neighbouring columns of one voxel: sum, mean, or maximum with the first point that has it (NaN wins over numbers).
template <int W, typename acc_t, typename scalar_t>
OCC_HD void reduce_voxel(Reduce reduce, const scalar_t* features, int64_t columns, int64_t column, const int64_t* point,
                         int64_t begin, int64_t end, scalar_t* out, int64_t* argmax) {
  acc_t value[W];
  for (int w = 0; w < W; ++w) value[w] = 0;
  if (reduce == Reduce::kMax) {
    for (int w = 0; w < W; ++w) {
      int64_t best = point[begin];
      acc_t highest = static_cast<acc_t>(features[best * columns + column + w]);
      for (int64_t k = begin + 1; k < end; ++k) {
        const acc_t next = static_cast<acc_t>(features[point[k] * columns + column + w]);
        if (next > highest || (next != next && highest == highest)) {
          highest = next;
          best = point[k];
        }
      }
      value[w] = highest;
      argmax[w] = best;
    }
  } else {
    for (int64_t k = begin; k < end; ++k) {
      const scalar_t* row = features + point[k] * columns + column;
      for (int w = 0; w < W; ++w) value[w] += static_cast<acc_t>(row[w]);
    }
    if (reduce == Reduce::kMean) {
      for (int w = 0; w < W; ++w) value[w] /= static_cast<acc_t>(end - begin);
    }
  }
  for (int w = 0; w < W; ++w) out[w] = static_cast<scalar_t>(value[w]);
}

}  // namespace occforge
