// Frustum pooling: every pixel of a feature map is spread along its ray with the depth probabilities as weights and
// summed in the cells of a voxel grid (J. Philion, S. Fidler, "Lift, Splat, Shoot", ECCV 2020). With v(i) the cell of
// frustum point i = (b, n, d, y, x), f(i) its pixel (b, n, y, x), w the depth weights and F the features:
//   out[v, :]   = sum over i with v(i) = v of  w[i] F[f(i), :]
//   dw[i]       = < dout[v(i), :], F[f(i), :] >
//   dF[f, :]    = sum over i with f(i) = f of  w[i] dout[v(i), :]
// The product w F (points x channels) never exists in memory. The forward pass goes cell by cell through the points
// sorted by cell, the backward pass pixel by pixel: nothing is added to one place from two threads, so both are
// deterministic and need no atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace occforge {

// n / divisor for 0 <= n < 2^31 by one multiplication (exact: multiplier = ceil(2^(31 + s) / divisor), s = ceil(log2)).
struct FastDivisor {
  uint64_t multiplier = 0;
  int shift = 0;
  int64_t divisor = 1;
  bool fast = false;

  FastDivisor(int64_t divisor_, int64_t numbers_below) : divisor(divisor_ < 1 ? 1 : divisor_) {
    fast = numbers_below <= (int64_t{1} << 31) && divisor < (int64_t{1} << 31);
    if (!fast) return;
    int log = 0;
    while ((int64_t{1} << log) < divisor) ++log;
    shift = 31 + log;
    multiplier = ((uint64_t{1} << shift) + static_cast<uint64_t>(divisor) - 1) / static_cast<uint64_t>(divisor);
  }
  OCC_HD int64_t divide(int64_t n) const {
    return fast ? static_cast<int64_t>((static_cast<uint64_t>(n) * multiplier) >> shift) : n / divisor;
  }
};

// Where a frustum point (linear index in (B, N, D, h, w)) finds its pixel (linear index in (B, N, h, w)).
struct FrustumShape {
  int64_t cameras;  // B N
  int64_t bins;     // D
  int64_t pixels;   // h w
  FastDivisor by_camera, by_pixels;

  FrustumShape(int64_t cameras_, int64_t bins_, int64_t pixels_)
      : cameras(cameras_),
        bins(bins_),
        pixels(pixels_),
        by_camera(bins_ * pixels_, cameras_ * bins_ * pixels_),
        by_pixels(pixels_, cameras_ * bins_ * pixels_) {}
  int64_t points() const { return cameras * bins * pixels; }
  OCC_HD int64_t pixel_of(int64_t point) const {
    return by_camera.divide(point) * pixels + (point - by_pixels.divide(point) * pixels);
  }
};

struct VoxelFrame {
  double lower[3];
  double interval[3];
  int64_t size[3];  // x, y, z
};

// Cell z Y X + y X + x of a point in metres, or -1 outside (NaN and infinity included). The index is truncated toward
// zero as in the field's implementations, so a point up to one cell below the lower bound falls into cell 0. Computed
// in the points' own precision: in float32 the same points fall into the same cells as there.
template <typename scalar_t>
OCC_HD int64_t cell_of_point(const VoxelFrame& frame, const scalar_t* point) {
  int64_t index[3] = {0, 0, 0};
  for (int axis = 0; axis < 3; ++axis) {
    const scalar_t at =
        (point[axis] - static_cast<scalar_t>(frame.lower[axis])) / static_cast<scalar_t>(frame.interval[axis]);
    if (!(at > scalar_t(-1) && at < static_cast<scalar_t>(frame.size[axis]))) return -1;
    index[axis] = static_cast<int64_t>(at);
  }
  return (index[2] * frame.size[1] + index[1]) * frame.size[0] + index[0];
}

// Running sums of one channel. The CPU code has a second form of this, of several neighbouring channels at once.
template <typename acc_t>
struct OneChannel {
  static constexpr int kChannels = 1;
  acc_t sum;
  // += weight * the w-th lane of a row
  template <typename scalar_t>
  OCC_HD void add(acc_t weight, const scalar_t* row, int w) {
    sum += weight * static_cast<acc_t>(row[w]);
  }
  // += the w-th lanes of two rows multiplied, channel by channel
  template <typename scalar_t>
  OCC_HD void add_product(const scalar_t* a, const scalar_t* b, int w) {
    sum += static_cast<acc_t>(a[w]) * static_cast<acc_t>(b[w]);
  }
  OCC_HD acc_t total() const { return sum; }
};

// sums[0..W) += w[i] F[f(i), W lanes from `channel` on] for one frustum point i.
template <int W, typename acc_t, typename lane_t, typename scalar_t>
OCC_HD void pool_point(const FrustumShape& shape, const scalar_t* depth, const scalar_t* feat, int64_t channels,
                       int64_t channel, int64_t point, lane_t* sums) {
  const acc_t weight = static_cast<acc_t>(depth[point]);
  const scalar_t* row = feat + shape.pixel_of(point) * channels + channel;
  OCC_UNROLL
  for (int w = 0; w < W; ++w) sums[w].add(weight, row, w);
}

}  // namespace occforge
