#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "voxel/upsample_rows_check.h"

namespace occforge {
namespace {

template <typename acc_t>
OCC_HD void add_scaled(acc_t* __restrict__ sum, const acc_t* __restrict__ values, acc_t weight, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) sum[c] += weight * values[c];
}

template <typename acc_t>
OCC_HD void forward_rows(const UpsampleGrid& grid, const acc_t* volume, const int64_t* rows, int64_t channels,
                         int64_t begin, int64_t end, acc_t* out) {
  for (int64_t r = begin; r < end; ++r) {
    const UpsamplePlace<acc_t> place = upsample_place<acc_t>(grid, rows[r]);
    acc_t* const sum = out + r * channels;
    std::fill(sum, sum + channels, acc_t(0));
    for (int k = 0; k < 8; ++k) {
      const acc_t weight = corner_weight(place.share, k);
      if (weight != 0) add_scaled(sum, volume + (place.lowest + corner_step(grid, k)) * channels, weight, channels);
    }
  }
}

OCC_CLONES void forward_range(const UpsampleGrid& grid, const float* volume, const int64_t* rows, int64_t channels,
                              int64_t begin, int64_t end, float* out) {
  forward_rows(grid, volume, rows, channels, begin, end, out);
}
OCC_CLONES void forward_range(const UpsampleGrid& grid, const double* volume, const int64_t* rows, int64_t channels,
                              int64_t begin, int64_t end, double* out) {
  forward_rows(grid, volume, rows, channels, begin, end, out);
}

// `offset[v]` to `offset[v + 1]`: the places in `order` of the rows whose lowest voxel is v.
template <typename acc_t>
OCC_HD void backward_cells(const UpsampleGrid& grid, const acc_t* grad, const UpsamplePlace<acc_t>* places,
                           const int64_t* order, const int64_t* offset, int64_t channels, int64_t begin, int64_t end,
                           acc_t* out) {
  for (int64_t v = begin; v < end; ++v) {
    acc_t* const sum = out + v * channels;
    std::fill(sum, sum + channels, acc_t(0));
    for (int k = 0; k < 8; ++k) {
      if (!has_corner(grid, v, k)) continue;
      const int64_t lowest = v - corner_step(grid, k);
      for (int64_t i = offset[lowest]; i < offset[lowest + 1]; ++i) {
        const acc_t weight = corner_weight(places[order[i]].share, k);
        if (weight != 0) add_scaled(sum, grad + order[i] * channels, weight, channels);
      }
    }
  }
}

OCC_CLONES void backward_range(const UpsampleGrid& grid, const float* grad, const UpsamplePlace<float>* places,
                               const int64_t* order, const int64_t* offset, int64_t channels, int64_t begin,
                               int64_t end, float* out) {
  backward_cells(grid, grad, places, order, offset, channels, begin, end, out);
}
OCC_CLONES void backward_range(const UpsampleGrid& grid, const double* grad, const UpsamplePlace<double>* places,
                               const int64_t* order, const int64_t* offset, int64_t channels, int64_t begin,
                               int64_t end, double* out) {
  backward_cells(grid, grad, places, order, offset, channels, begin, end, out);
}

void check_places(const int64_t* rows, int64_t count, int64_t fine) {
  int64_t low = 0, high = -1;
  for (int64_t r = 0; r < count; ++r) {
    low = std::min(low, rows[r]);
    high = std::max(high, rows[r]);
  }
  TORCH_CHECK_VALUE(low >= 0 && high < fine, "rows must be in 0..", fine - 1, ", found ", low < 0 ? low : high);
}

at::Tensor upsample_rows_cpu(const at::Tensor& volume_, const at::Tensor& rows_, int64_t scale) {
  check_upsample_rows(volume_, rows_);
  TORCH_CHECK_VALUE(volume_.dim() == 5, "volume must have shape (B, Z, Y, X, C), found ", volume_.sizes());
  const UpsampleGrid grid =
      check_upsample_grid(volume_.size(0), volume_.size(1), volume_.size(2), volume_.size(3), scale);
  const at::Tensor rows = rows_.contiguous();
  const int64_t count = rows.size(0), channels = volume_.size(4);
  const auto* places = rows.const_data_ptr<int64_t>();
  check_places(places, count, grid.fine());
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume_.scalar_type(), "upsample_rows", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const at::Tensor volume = volume_.contiguous().to(c10::CppTypeToScalarType<acc_t>::value);
    at::Tensor out = at::empty({count, channels}, volume.options());
    const auto* from = volume.const_data_ptr<acc_t>();
    auto* to = out.data_ptr<acc_t>();
    at::parallel_for(0, count, 1024,
                     [&](int64_t begin, int64_t end) { forward_range(grid, from, places, channels, begin, end, to); });
    result = out.to(volume_.scalar_type());
  });
  return result;
}

at::Tensor upsample_rows_backward_cpu(const at::Tensor& grad_, const at::Tensor& rows_, int64_t batch, int64_t depth,
                                      int64_t height, int64_t width, int64_t scale) {
  check_upsample_grad(grad_, rows_);
  const UpsampleGrid grid = check_upsample_grid(batch, depth, height, width, scale);
  const at::Tensor rows = rows_.contiguous();
  const int64_t count = rows.size(0), channels = grad_.size(1), cells = grid.coarse();
  const auto* numbers = rows.const_data_ptr<int64_t>();
  check_places(numbers, count, grid.fine());
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad_.scalar_type(), "upsample_rows_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const at::Tensor grad = grad_.contiguous().to(c10::CppTypeToScalarType<acc_t>::value);
    at::Tensor out = at::empty({batch, depth, height, width, channels}, grad.options());
    std::vector<UpsamplePlace<acc_t>> places(count);
    at::parallel_for(0, count, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) places[r] = upsample_place<acc_t>(grid, numbers[r]);
    });
    std::vector<int64_t> offset(cells + 1, 0), order(count);  // counting sort by the lowest voxel, stable
    for (const auto& place : places) ++offset[place.lowest + 1];
    for (int64_t v = 0; v < cells; ++v) offset[v + 1] += offset[v];
    std::vector<int64_t> next(offset.begin(), offset.end() - 1);
    for (int64_t r = 0; r < count; ++r) order[next[places[r].lowest]++] = r;
    const auto* from = grad.const_data_ptr<acc_t>();
    auto* to = out.data_ptr<acc_t>();
    at::parallel_for(0, cells, 1024, [&](int64_t begin, int64_t end) {
      backward_range(grid, from, places.data(), order.data(), offset.data(), channels, begin, end, to);
    });
    result = out.to(grad_.scalar_type());
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("upsample_rows", &upsample_rows_cpu);
  m.impl("upsample_rows_backward", &upsample_rows_backward_cpu);
}

}  // namespace occforge
