#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "voxel/frustum_pool_check.h"

namespace occforge {

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Indices: cell of each point, then a counting sort by cell

std::tuple<at::Tensor, at::Tensor, at::Tensor> frustum_indices_cpu(const at::Tensor& points_,
                                                                   at::ArrayRef<double> lower,
                                                                   at::ArrayRef<double> interval,
                                                                   at::ArrayRef<int64_t> size) {
  check_frustum_points(points_);
  const VoxelFrame frame = check_voxel_frame(lower, interval, size);
  const at::Tensor points = points_.contiguous();
  const int64_t batch = points.size(0), total = points.numel() / 3;
  const int64_t per_sample = batch > 0 ? total / batch : 0, grid = size[0] * size[1] * size[2];
  at::Tensor voxel = at::empty(points.sizes().slice(0, 5), points.options().dtype(at::kLong));
  at::Tensor point = at::empty({total}, voxel.options());
  at::Tensor offset = at::zeros({batch * grid + 1}, voxel.options());
  auto* voxels = voxel.data_ptr<int64_t>();
  auto* order = point.data_ptr<int64_t>();
  auto* ends = offset.data_ptr<int64_t>();

  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "frustum_indices", [&] {
    const auto* at = points.const_data_ptr<scalar_t>();
    at::parallel_for(0, total, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t cell = cell_of_point(frame, at + 3 * i);
        voxels[i] = cell < 0 ? -1 : i / per_sample * grid + cell;
      }
    });
  });

  // A sample's points fall into the sample's cells. Each task owns a range of the cells of one sample and goes through
  // the sample's points, so the order inside a cell is that of the points whatever the number of threads.
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>(8, (at::get_num_threads() + batch - 1) / std::max<int64_t>(batch, 1)));
  const auto for_each_part = [&](const auto& body) {
    at::parallel_for(0, batch * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / parts, part = task % parts;
        body(b * per_sample, (b + 1) * per_sample, b * grid + grid * part / parts,
             b * grid + grid * (part + 1) / parts);
      }
    });
  };
  for_each_part([&](int64_t first, int64_t last, int64_t low, int64_t high) {
    for (int64_t i = first; i < last; ++i) {
      if (voxels[i] >= low && voxels[i] < high) ++ends[voxels[i]];
    }
  });
  int64_t kept = 0;
  for (int64_t v = 0; v < batch * grid; ++v) ends[v] = kept += ends[v];
  ends[batch * grid] = kept;
  // From the last point to the first, each cell filled from its end: in the end `ends` holds the starts.
  for_each_part([&](int64_t first, int64_t last, int64_t low, int64_t high) {
    for (int64_t i = last - 1; i >= first; --i) {
      if (voxels[i] >= low && voxels[i] < high) order[--ends[voxels[i]]] = i;
    }
  });
  int64_t dropped = kept;
  for (int64_t i = 0; i < total && dropped < total; ++i) {
    if (voxels[i] < 0) order[dropped++] = i;
  }
  return {voxel, point, offset};
}

// ---------------------------------------------------------------------------------------------------------------------
// Pooling, cell by cell

template <typename scalar_t>
struct PoolArguments {
  FrustumShape shape;
  const scalar_t *depth, *feat;  // float32 or float64
  const int64_t *voxel, *point, *offset;
  int64_t channels, cells, points;
};

// The first cell in [begin, end) whose entries are not what frustum_indices makes of `voxel`, or -1. Together with
// check_dropped it establishes that `point` is the permutation that sorts `voxel`, and so that no read goes astray.
template <typename scalar_t>
int64_t find_corrupt_cell(const PoolArguments<scalar_t>& a, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    const int64_t first = a.offset[v], last = a.offset[v + 1];
    if (first < 0 || first > last || last > a.points) return v;
    int64_t before = -1;
    for (int64_t k = first; k < last; ++k) {
      const int64_t p = a.point[k];
      if (p <= before || p >= a.points || a.voxel[p] != v) return v;
      before = p;
    }
  }
  return -1;
}

template <typename scalar_t>
void check_dropped(const PoolArguments<scalar_t>& a) {
  const int64_t kept = a.offset[a.cells];
  TORCH_CHECK_VALUE(a.offset[0] == 0 && kept >= 0 && kept <= a.points,
                    "indices.offset must go from 0 to the number of points kept, found ", a.offset[0], " and ", kept);
  int64_t before = -1;
  for (int64_t k = kept; k < a.points; ++k) {
    const int64_t p = a.point[k];
    TORCH_CHECK_VALUE(p > before && p < a.points && a.voxel[p] == -1, "indices.point is corrupt at entry ", k);
    before = p;
  }
}

// Running sums of 32 bytes of neighbouring channels. Left to themselves compilers interchange the loops over points and
// channels and then vectorise neither.
template <typename scalar_t>
struct ManyChannels {
  typedef scalar_t vector_t __attribute__((vector_size(32), aligned(alignof(scalar_t)), may_alias));
  static constexpr int kChannels = 32 / sizeof(scalar_t);
  vector_t sum;
  OCC_HD void add(scalar_t weight, const scalar_t* row, int w) {
    sum += weight * reinterpret_cast<const vector_t*>(row)[w];
  }
  OCC_HD void add_product(const scalar_t* a, const scalar_t* b, int w) {
    sum += reinterpret_cast<const vector_t*>(a)[w] * reinterpret_cast<const vector_t*>(b)[w];
  }
  OCC_HD scalar_t total() const {
    scalar_t all = 0;
    OCC_UNROLL
    for (int c = 0; c < kChannels; ++c) all += sum[c];
    return all;
  }
};

// W lanes of one cell from `channel` on; the sums stay in registers.
template <int W, typename lane_t, typename scalar_t, typename out_t>
OCC_HD void pool_channels(const PoolArguments<scalar_t>& a, int64_t channel, int64_t first, int64_t last, out_t* row) {
  lane_t sums[W] = {};
  for (int64_t k = first; k < last; ++k) {
    pool_point<W, scalar_t>(a.shape, a.depth, a.feat, a.channels, channel, a.point[k], sums);
  }
  scalar_t flat[W * lane_t::kChannels];
  std::memcpy(flat, sums, sizeof(flat));
  for (int c = 0; c < W * lane_t::kChannels; ++c) row[channel + c] = static_cast<out_t>(flat[c]);
}

template <typename scalar_t, typename out_t>
OCC_HD void pool_cells(const PoolArguments<scalar_t>& a, int64_t begin, int64_t end, out_t* out) {
  using wide_t = ManyChannels<scalar_t>;
  constexpr int kWide = wide_t::kChannels;
  for (int64_t v = begin; v < end; ++v) {
    out_t* row = out + v * a.channels;
    const int64_t first = a.offset[v], last = a.offset[v + 1];
    int64_t c = 0;
    if (first == last) {
      for (; c < a.channels; ++c) row[c] = out_t(0);
    }
    for (; c + 8 * kWide <= a.channels; c += 8 * kWide) pool_channels<8, wide_t>(a, c, first, last, row);
    for (; c + 4 * kWide <= a.channels; c += 4 * kWide) pool_channels<4, wide_t>(a, c, first, last, row);
    for (; c + 2 * kWide <= a.channels; c += 2 * kWide) pool_channels<2, wide_t>(a, c, first, last, row);
    for (; c + kWide <= a.channels; c += kWide) pool_channels<1, wide_t>(a, c, first, last, row);
    for (; c < a.channels; ++c) pool_channels<1, OneChannel<scalar_t>>(a, c, first, last, row);
  }
}

OCC_CLONES void pool_range(const PoolArguments<float>& a, int64_t begin, int64_t end, float* out) {
  pool_cells(a, begin, end, out);
}
OCC_CLONES void pool_range(const PoolArguments<double>& a, int64_t begin, int64_t end, double* out) {
  pool_cells(a, begin, end, out);
}
OCC_CLONES void pool_range(const PoolArguments<float>& a, int64_t begin, int64_t end, at::Half* out) {
  pool_cells(a, begin, end, out);
}
OCC_CLONES void pool_range(const PoolArguments<float>& a, int64_t begin, int64_t end, at::BFloat16* out) {
  pool_cells(a, begin, end, out);
}

// Cells at which to cut so that each of `parts` ranges has as much to read and write (offset must be monotone; if it is
// not, the ranges still cover every cell once and the check inside them reports it).
std::vector<int64_t> balanced_ranges(const int64_t* offset, int64_t cells, int64_t parts) {
  std::vector<int64_t> cut(parts + 1, 0);
  const auto cost = [&](int64_t v) { return 3.0 * static_cast<double>(offset[v]) + static_cast<double>(v); };
  for (int64_t part = 1; part < parts; ++part) {
    const double wanted = cost(cells) * static_cast<double>(part) / static_cast<double>(parts);
    int64_t low = cut[part - 1], high = cells;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (cost(middle) < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    cut[part] = low;
  }
  cut[parts] = cells;
  return cut;
}

at::Tensor frustum_pool_cpu(const at::Tensor& depth_, const at::Tensor& feat_, const at::Tensor& voxel_,
                            const at::Tensor& point_, const at::Tensor& offset_, at::ArrayRef<int64_t> size) {
  const PoolSizes sizes = check_pool(depth_, feat_, voxel_, point_, offset_, size);
  const at::Tensor voxel = voxel_.contiguous(), point = point_.contiguous(), offset = offset_.contiguous();
  at::Tensor out = at::empty({sizes.batch, size[2], size[1], size[0], sizes.channels}, feat_.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feat_.scalar_type(), "frustum_pool", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto dtype = c10::CppTypeToScalarType<acc_t>::value;
    const at::Tensor depth = depth_.contiguous().to(dtype);
    const at::Tensor feat = feat_.permute({0, 1, 3, 4, 2}).contiguous().to(dtype);
    const PoolArguments<acc_t> arguments{sizes.frustum,
                                         depth.const_data_ptr<acc_t>(),
                                         feat.const_data_ptr<acc_t>(),
                                         voxel.const_data_ptr<int64_t>(),
                                         point.const_data_ptr<int64_t>(),
                                         offset.const_data_ptr<int64_t>(),
                                         sizes.channels,
                                         sizes.cells,
                                         depth.numel()};
    check_dropped(arguments);
    auto* volume = out.data_ptr<scalar_t>();
    const int64_t parts = at::get_num_threads();
    const std::vector<int64_t> cut = balanced_ranges(arguments.offset, sizes.cells, parts);
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      constexpr int64_t kBlock = 512;  // checked and pooled while its indices are in the cache
      for (int64_t begin = cut[first]; begin < cut[last]; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, cut[last]);
        const int64_t corrupt = find_corrupt_cell(arguments, begin, end);
        TORCH_CHECK_VALUE(corrupt < 0, "indices are corrupt at cell ", corrupt,
                          ": they must come from frustum_indices and be passed on unchanged");
        pool_range(arguments, begin, end, volume);
      }
    });
  });
  return out.permute({0, 4, 1, 2, 3});
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward, pixel by pixel

template <typename scalar_t>
struct BackwardArguments {
  FrustumShape shape;
  const scalar_t *grad, *depth, *feat;
  const int64_t* voxel;
  int64_t channels;
  scalar_t *grad_depth, *grad_feat;
};

// W lanes of one pixel: adds to `dots` (one a point) and writes the gradients of the features.
template <int W, typename lane_t, typename scalar_t>
OCC_HD void backward_channels(const BackwardArguments<scalar_t>& a, int64_t pixel, int64_t channel, int64_t count,
                              const int64_t* cell, const scalar_t* weight, scalar_t* dots) {
  const scalar_t* feat = a.feat + pixel * a.channels + channel;
  lane_t sums[W] = {};
  for (int64_t k = 0; k < count; ++k) {
    const scalar_t* grad = a.grad + cell[k] * a.channels + channel;
    lane_t dot = {};
    OCC_UNROLL
    for (int w = 0; w < W; ++w) {
      dot.add_product(grad, feat, w);
      sums[w].add(weight[k], grad, w);
    }
    dots[k] += dot.total();
  }
  std::memcpy(a.grad_feat + pixel * a.channels + channel, sums, sizeof(sums));
}

template <typename scalar_t>
OCC_HD void backward_pixels(const BackwardArguments<scalar_t>& a, int64_t begin, int64_t end, int64_t* cell,
                            scalar_t* weight, scalar_t* dots) {
  using wide_t = ManyChannels<scalar_t>;
  constexpr int kWide = wide_t::kChannels;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t camera = pixel / a.shape.pixels;
    const int64_t base = camera * a.shape.bins * a.shape.pixels + pixel % a.shape.pixels;
    int64_t count = 0;
    for (int64_t d = 0; d < a.shape.bins; ++d) {
      const int64_t i = base + d * a.shape.pixels;
      if (a.voxel[i] < 0) continue;
      cell[count] = a.voxel[i];
      weight[count] = a.depth[i];
      dots[count++] = 0;
    }
    int64_t c = 0;
    for (; c + 4 * kWide <= a.channels; c += 4 * kWide) {
      backward_channels<4, wide_t>(a, pixel, c, count, cell, weight, dots);
    }
    for (; c + 2 * kWide <= a.channels; c += 2 * kWide) {
      backward_channels<2, wide_t>(a, pixel, c, count, cell, weight, dots);
    }
    for (; c + kWide <= a.channels; c += kWide) backward_channels<1, wide_t>(a, pixel, c, count, cell, weight, dots);
    for (; c < a.channels; ++c) backward_channels<1, OneChannel<scalar_t>>(a, pixel, c, count, cell, weight, dots);
    count = 0;
    for (int64_t d = 0; d < a.shape.bins; ++d) {
      const int64_t i = base + d * a.shape.pixels;
      a.grad_depth[i] = a.voxel[i] < 0 ? scalar_t(0) : dots[count++];
    }
  }
}

OCC_CLONES void backward_range(const BackwardArguments<float>& a, int64_t begin, int64_t end, int64_t* cell,
                               float* weight, float* dots) {
  backward_pixels(a, begin, end, cell, weight, dots);
}
OCC_CLONES void backward_range(const BackwardArguments<double>& a, int64_t begin, int64_t end, int64_t* cell,
                               double* weight, double* dots) {
  backward_pixels(a, begin, end, cell, weight, dots);
}

std::tuple<at::Tensor, at::Tensor> frustum_pool_backward_cpu(const at::Tensor& grad_, const at::Tensor& depth_,
                                                             const at::Tensor& feat_, const at::Tensor& voxel_,
                                                             const at::Tensor& point, const at::Tensor& offset,
                                                             at::ArrayRef<int64_t> size) {
  const PoolSizes sizes = check_pool(depth_, feat_, voxel_, point, offset, size);
  check_pool_grad(grad_, feat_, size);
  const at::Tensor voxel = voxel_.contiguous();
  const auto* voxels = voxel.const_data_ptr<int64_t>();
  const int64_t points = voxel.numel(), cells = sizes.cells;
  at::parallel_for(0, points, 65536, [&](int64_t begin, int64_t end) {
    int64_t low = -1, high = -1;
    for (int64_t i = begin; i < end; ++i) {
      low = std::min(low, voxels[i]);
      high = std::max(high, voxels[i]);
    }
    TORCH_CHECK_VALUE(low >= -1 && high < cells, "indices.voxel must be in -1..", cells - 1, ", found ",
                      low < -1 ? low : high);
  });
  at::Tensor grad_depth, grad_feat;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, feat_.scalar_type(), "frustum_pool_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto dtype = c10::CppTypeToScalarType<acc_t>::value;
    const at::Tensor depth = depth_.contiguous().to(dtype);
    const at::Tensor feat = feat_.permute({0, 1, 3, 4, 2}).contiguous().to(dtype);
    const at::Tensor grad = grad_.permute({0, 2, 3, 4, 1}).contiguous().to(dtype);
    at::Tensor depth_out = at::empty(depth.sizes(), depth.options());
    at::Tensor feat_out = at::empty(feat.sizes(), feat.options());
    const BackwardArguments<acc_t> arguments{sizes.frustum,
                                             grad.const_data_ptr<acc_t>(),
                                             depth.const_data_ptr<acc_t>(),
                                             feat.const_data_ptr<acc_t>(),
                                             voxels,
                                             sizes.channels,
                                             depth_out.data_ptr<acc_t>(),
                                             feat_out.data_ptr<acc_t>()};
    at::parallel_for(0, sizes.frustum.cameras * sizes.frustum.pixels, 16, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> cell(sizes.frustum.bins);
      std::vector<acc_t> weight(sizes.frustum.bins), dots(sizes.frustum.bins);
      backward_range(arguments, begin, end, cell.data(), weight.data(), dots.data());
    });
    grad_depth = depth_out.to(feat_.scalar_type());
    grad_feat = feat_out.to(feat_.scalar_type());
  });
  return {grad_depth, grad_feat.permute({0, 1, 4, 2, 3})};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("frustum_indices", &frustum_indices_cpu);
  m.impl("frustum_pool", &frustum_pool_cpu);
  m.impl("frustum_pool_backward", &frustum_pool_backward_cpu);
}

}  // namespace occforge
