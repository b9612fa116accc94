// Volume rendering of dense grids in one pass. Along each ray, front to back, with raw density d_i and semantics s_i
// (logits) interpolated trilinearly at sample i, opacity alpha_i as in density_kernel.h and T_0 = 1:
//   w_i = T_i alpha_i,  T_{i+1} = T_i (1 - alpha_i)
//   depth = sum w_i t_i,  semantics = sum w_i s_i,  transmittance = T_n,  distortion as in compositing_kernel.h (m = t)
// Backward, from upstream g_D, g_S, g_T, g_L of these four: every weight has
//   g_i = g_D t_i + <g_S, s_i> + g_L dL/dw_i
//   d tau_i = T_{i+1} (g_i - R_{i+1}),  R_n = g_T,  R_i = alpha_i g_i + (1 - alpha_i) R_{i+1}
// or, front to back, T_{i+1} R_{i+1} = sum_{j > i} w_j g_j + T_n g_T. The whole sum is known from the outputs alone,
//   sum_j w_j g_j = g_D depth + <g_S, semantics> + 2 g_L distortion,
// since the distortion is homogeneous of degree 2 in the weights.
//
// Grids are (X, Y, Z) with the cells' centres at lower + (index + 1/2) voxel_size. Between centres values are
// interpolated; half a cell beyond the outermost centres they fall to 0.
#pragma once

#include <cstdint>

#include "common.h"
#include "render/compositing_kernel.h"
#include "render/density_kernel.h"
#include "render/ray_samples_kernel.h"

namespace occforge {

// One axis of a trilinear sample: cell `cell` weighs `low`, the next one `high`. Places outside the grid, NaN too,
// weigh nothing; cells named always exist.
template <typename T>
struct Tent {
  int32_t cell;
  T low, high;
};

// `last`: number of cells less 2, at least 0. `next`: 1, or 0 where the axis has one cell alone.
template <typename T>
OCC_HD Tent<T> tent_of(T x, T last, T next) {
  const T above = x > 0 ? x : T(0), inside = above < last ? above : last;
  const auto cell = static_cast<int32_t>(inside);
  const T from = x - static_cast<T>(cell), beyond = 2 - from;
  const T low = 1 - std::fabs(from), high = next * (from < beyond ? from : beyond);
  return {cell, low > 0 ? low : T(0), high > 0 ? high : T(0)};
}

// Sizes of the grids and how far apart the eight corners are, in cells.
template <typename T>
struct GridShape {
  int64_t grids, cells, channels;  // cells of one grid
  int32_t size[3], stride[3];
  int32_t corner[8];  // x slowest, z fastest
  T last[3], next[3];

  GridShape(int64_t grids_, int64_t x, int64_t y, int64_t z, int64_t channels_)
      : grids(grids_), cells(x * y * z), channels(channels_) {
    const int64_t sizes[3] = {x, y, z}, strides[3] = {y * z, z, 1};
    for (int axis = 0; axis < 3; ++axis) {
      size[axis] = static_cast<int32_t>(sizes[axis]);
      stride[axis] = static_cast<int32_t>(strides[axis]);
      last[axis] = static_cast<T>(sizes[axis] > 2 ? sizes[axis] - 2 : 0);
      next[axis] = static_cast<T>(sizes[axis] > 1);
    }
    for (int k = 0; k < 8; ++k) {
      const int64_t steps[3] = {k / 4, k / 2 % 2, k % 2};
      corner[k] = 0;
      for (int axis = 0; axis < 3; ++axis) {
        if (sizes[axis] > 1) corner[k] += static_cast<int32_t>(steps[axis] * strides[axis]);
      }
    }
  }
};

template <typename T>
struct RenderOptions {
  T shift, stop, min_weight;
};

// Rays with regular (or stratified) samples between where they enter and leave the grid.
template <typename T>
struct RegularRays {
  const T *origins, *directions;  // (R, 3) metres
  const int64_t *grid_index;      // (R,), or none: grid 0
  const int64_t *seed;            // none: samples at `position` of their intervals
  Box<T> box;
  T lower[3], voxel_size[3];
  T near, far, step, position, unit;  // step: metres, or 0 for `count` samples a ray
  int64_t count;

  struct Row {
    SampleRow<T> samples;
    T origin[3], direction[3];  // in cells, 0 at the centre of the first
    T beta;
    int64_t count, grid;

    OCC_HD T t(int64_t i) const { return samples.at(i); }
    OCC_HD T place(int64_t, T t, int axis) const { return origin[axis] + t * direction[axis]; }
    OCC_HD T interval(int64_t) const { return beta; }
    OCC_HD T width(int64_t) const { return samples.step; }
  };

  OCC_HD Row row(int64_t ray, int64_t grids) const {
    Row row;
    const T *o = origins + 3 * ray, *d = directions + 3 * ray;
    T first = near, end = far;
    clip_to_box(box, o, d, first, end);
    row.grid = grid_index != nullptr ? grid_index[ray] : 0;
    row.count = 0;
    T spacing = 0;
    const T length = static_cast<T>(std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]));
    if (end > first && row.grid >= 0 && row.grid < grids) {
      spacing = step > 0 ? step / length : (end - first) / static_cast<T>(count);
      row.count = step > 0 ? static_cast<int64_t>(std::ceil((end - first) / spacing)) : count;
    } else {
      row.grid = 0;
    }
    row.beta = spacing * length / unit;
    const int64_t number = seed != nullptr ? *seed : 0;
    row.samples = {first, spacing, position, seed != nullptr, ray_key(number, ray)};
    for (int axis = 0; axis < 3; ++axis) {
      row.origin[axis] = (o[axis] - lower[axis]) / voxel_size[axis] - T(0.5);
      row.direction[axis] = d[axis] / voxel_size[axis];
    }
    return row;
  }
};

// Rays whose samples the caller has placed.
template <typename T>
struct PackedRays {
  const T *points, *places;  // (M, 3) in cells, 0 at the centre of the first; (M,)
  const T *intervals, *widths;
  int64_t interval_step, width_step, samples;  // steps: 0 (one number for all) or 1
  const int64_t *offset, *grid_index;

  struct Row {
    const T *points, *places, *intervals, *widths;
    int64_t interval_step, width_step, count, grid;

    OCC_HD T t(int64_t i) const { return places[i]; }
    OCC_HD T place(int64_t i, T, int axis) const { return points[3 * i + axis]; }
    OCC_HD T interval(int64_t i) const { return intervals[i * interval_step]; }
    OCC_HD T width(int64_t i) const { return widths[i * width_step]; }
  };

  OCC_HD Row row(int64_t ray, int64_t grids) const {
    const Span span = span_of(offset, ray, samples);
    Row row{points + 3 * span.first,
            places + span.first,
            intervals + span.first * interval_step,
            widths + span.first * width_step,
            interval_step,
            width_step,
            span.last - span.first,
            grid_index != nullptr ? grid_index[ray] : 0};
    if (row.grid < 0 || row.grid >= grids) row.grid = row.count = 0;
    return row;
  }
};

}  // namespace occforge
