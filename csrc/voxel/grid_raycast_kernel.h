// One ray through a dense grid of cells: the traversal of J. Amanatides and A. Woo, "A Fast Voxel Traversal Algorithm
// for Ray Tracing" (Eurographics 1987), in double precision.
//
// With o = (origin - lower) / voxel_size and d = direction / voxel_size the ray is o + t d in units of cells, and t
// keeps the unit of the caller's direction. The face through which the ray leaves cell i along one axis lies at t = (i
// + [d > 0] - o) / d; that is computed anew from the integer i at each step, so nothing accumulates however long the
// ray is. Equal t on two axes (a ray through an edge) are taken in a fixed order: z before y before x.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common.h"

namespace occforge {

struct GridFrame {
  double lower[3];
  double voxel_size[3];
  int64_t size[3];
};

// A ray under way: the cell it is in, since `t`, and how it goes on. The face through which it leaves the cell along an
// axis lies at (face - o) * inverse with face = cell + (step > 0); along an axis without motion that is infinity.
struct Walk {
  double o[3], inverse[3];
  int step[3];
  int64_t cell[3];
  double t;

  OCC_HD double next(int axis) const {
    return step[axis] == 0 ? std::numeric_limits<double>::infinity()
                           : (static_cast<double>(cell[axis] + (step[axis] > 0)) - o[axis]) * inverse[axis];
  }
};

enum class Start { kInside, kMisses, kInvalid };

// Put the ray into the first cell that it crosses with t in t_begin..t_end; an origin outside the grid is moved to
// where the ray enters it. kMisses: it crosses none. kInvalid: a number is not finite, or there is no direction.
OCC_HD Start start_walk(const GridFrame& frame, const double* origin, const double* direction, double t_begin,
                        double t_end, Walk& walk) {
  constexpr double kLargest = std::numeric_limits<double>::max();
  double d[3];
  double entry = t_begin, leave = std::numeric_limits<double>::infinity();
  bool valid = false;
  for (int axis = 0; axis < 3; ++axis) {
    walk.o[axis] = (origin[axis] - frame.lower[axis]) / frame.voxel_size[axis];
    d[axis] = direction[axis] / frame.voxel_size[axis];
    if (!(std::fabs(walk.o[axis]) <= kLargest) || !(std::fabs(d[axis]) <= kLargest)) return Start::kInvalid;
    walk.inverse[axis] = 1.0 / d[axis];
    const bool moves = std::fabs(walk.inverse[axis]) <= kLargest;  // not for 0, nor for what is too small to divide by
    walk.step[axis] = moves ? (d[axis] > 0 ? 1 : -1) : 0;
    valid = valid || moves;
  }
  if (!valid) return Start::kInvalid;

  // Clip to the box. `face` is the axis of the face through which an outer origin enters, its cell there is known
  // exactly.
  int face = -1;
  for (int axis = 0; axis < 3; ++axis) {
    const double size = static_cast<double>(frame.size[axis]);
    if (walk.step[axis] == 0) {
      if (!(walk.o[axis] >= 0 && walk.o[axis] < size)) return Start::kMisses;
      continue;
    }
    const double near = ((walk.step[axis] > 0 ? 0.0 : size) - walk.o[axis]) * walk.inverse[axis];
    const double far = ((walk.step[axis] > 0 ? size : 0.0) - walk.o[axis]) * walk.inverse[axis];
    if (near > entry) {
      entry = near;
      face = axis;
    }
    leave = far < leave ? far : leave;
  }
  if (!(entry < leave && entry <= t_end)) return Start::kMisses;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t last = frame.size[axis] - 1;
    if (axis == face) {
      walk.cell[axis] = walk.step[axis] > 0 ? 0 : last;
    } else {
      const double at = walk.o[axis] + (walk.step[axis] == 0 ? 0.0 : entry * d[axis]);
      const double low = std::floor(at);
      walk.cell[axis] = low < 0 ? 0 : (low > static_cast<double>(last) ? last : static_cast<int64_t>(low));
    }
  }
  walk.t = entry;
  return Start::kInside;
}

// Visit the cells of the ray in order while visit(x, y, z, entry, exit) returns true. t runs from t_begin to t_end.
// Returns the t at which the walk ended: where the ray left the grid (t_begin if it never was inside), or t_end. A ray
// with a non-finite number or without direction gives NaN.
template <typename Visitor>
OCC_HD double walk_grid(const GridFrame& frame, const double* origin, const double* direction, double t_begin,
                        double t_end, Visitor& visit) {
  Walk walk;
  const Start start = start_walk(frame, origin, direction, t_begin, t_end, walk);
  if (start != Start::kInside) return start == Start::kMisses ? t_begin : std::numeric_limits<double>::quiet_NaN();
  double next[3] = {walk.next(0), walk.next(1), walk.next(2)};
  while (true) {
    int axis;
    if (next[0] < next[1]) {
      axis = next[0] < next[2] ? 0 : 2;
    } else {
      axis = next[1] < next[2] ? 1 : 2;
    }
    const double exit = next[axis] > walk.t ? next[axis] : walk.t;
    if (!visit(walk.cell[0], walk.cell[1], walk.cell[2], walk.t, exit)) return walk.t;
    if (exit > t_end) return t_end;
    walk.t = exit;
    walk.cell[axis] += walk.step[axis];
    if (walk.cell[axis] < 0 || walk.cell[axis] >= frame.size[axis]) return walk.t;
    next[axis] = walk.next(axis);
  }
}

// Stops at the first cell whose label is not `free`.
struct FirstHit {
  const uint8_t* grid;
  int64_t stride_x, stride_y;
  uint8_t free;
  uint8_t label;
  int64_t cell[3];
  double entry, exit;

  OCC_HD bool operator()(int64_t x, int64_t y, int64_t z, double t_entry, double t_exit) {
    const uint8_t found = grid[x * stride_x + y * stride_y + z];
    if (found == free) return true;
    label = found;
    cell[0] = x;
    cell[1] = y;
    cell[2] = z;
    entry = t_entry;
    exit = t_exit;
    return false;
  }
};

// First hit of one ray, written to the four outputs of ray r. See cast_rays in projects/occforge/ops/grid_raycast.py.
OCC_HD void cast_one_ray(const GridFrame& frame, const uint8_t* grid, uint8_t free, const double* origin,
                         const double* direction, double max_distance, int64_t r, uint8_t* label, int32_t* cell,
                         double* entry, double* exit) {
  FirstHit hit{grid, frame.size[1] * frame.size[2], frame.size[2], free, free, {-1, -1, -1}, 0.0, 0.0};
  const double end = walk_grid(frame, origin, direction, 0.0, max_distance, hit);
  label[r] = hit.label;
  for (int axis = 0; axis < 3; ++axis) cell[3 * r + axis] = static_cast<int32_t>(hit.cell[axis]);
  const bool found = hit.cell[0] >= 0;
  const double miss = end == end ? std::numeric_limits<double>::infinity() : end;
  entry[r] = found ? hit.entry : miss;
  exit[r] = found ? hit.exit : end;
}

// One byte per cell, set to 1 by whichever ray comes first: the result does not depend on the order.
OCC_HD void mark_cell(uint8_t* at) {
#if defined(__CUDA_ARCH__)
  *at = 1;
#else
  __atomic_store_n(at, uint8_t{1}, __ATOMIC_RELAXED);
#endif
}

struct MarkCells {
  const uint8_t* grid;
  uint8_t* seen;
  int64_t stride_x, stride_y;
  uint8_t free;
  bool through_occupied;
  int64_t target[3];
  bool arrived;

  OCC_HD bool operator()(int64_t x, int64_t y, int64_t z, double, double) {
    const int64_t at = x * stride_x + y * stride_y + z;
    mark_cell(seen + at);
    if (x == target[0] && y == target[1] && z == target[2]) return false;
    if (!through_occupied && grid[at] != free) {
      arrived = false;
      return false;
    }
    return true;
  }
};

// All cells of the segment origin -> target; see observed_cells in projects/occforge/ops/grid_raycast.py.
OCC_HD void mark_one_segment(const GridFrame& frame, const uint8_t* grid, uint8_t free, bool through_occupied,
                             const double* origin, const double* target, uint8_t* seen) {
  double direction[3];
  MarkCells mark{grid, seen, frame.size[1] * frame.size[2], frame.size[2], free, through_occupied, {-1, -1, -1}, true};
  bool inside = true, same = true;
  for (int axis = 0; axis < 3; ++axis) {
    direction[axis] = target[axis] - origin[axis];
    same = same && direction[axis] == 0;
    const double low = std::floor((target[axis] - frame.lower[axis]) / frame.voxel_size[axis]);
    inside = inside && low >= 0 && low < static_cast<double>(frame.size[axis]);
    mark.target[axis] = inside ? static_cast<int64_t>(low) : -1;
  }
  if (!inside) mark.target[0] = -1;
  if (!same) {
    const double end = walk_grid(frame, origin, direction, 0.0, 1.0, mark);
    if (end != end) return;
  }
  // The end of the walk and the target's own cell may differ by the last rounding.
  if (inside && mark.arrived) {
    mark_cell(seen + mark.target[0] * mark.stride_x + mark.target[1] * mark.stride_y + mark.target[2]);
  }
}

}  // namespace occforge
