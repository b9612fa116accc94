#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <vector>

#include "voxel/voxelize_check.h"

namespace occforge {
namespace {

// A cell number with the point it came from: in one word where both fit, else in two.
struct PackedItem {
  uint64_t word;
  static PackedItem make(int64_t cell, int64_t point, int bits) {
    return {static_cast<uint64_t>(cell) << bits | static_cast<uint64_t>(point)};
  }
  uint64_t cell(int bits) const { return word >> bits; }
  int64_t point(int bits) const { return static_cast<int64_t>(word & ((uint64_t{1} << bits) - 1)); }
};

struct WideItem {
  uint64_t number;
  int64_t index;
  static WideItem make(int64_t cell, int64_t point, int) { return {static_cast<uint64_t>(cell), point}; }
  uint64_t cell(int) const { return number; }
  int64_t point(int) const { return index; }
};

// The range [0, total) cut into one part a thread; body(part, begin, end) runs for each, in parallel.
template <typename Body>
void for_each_part(int64_t total, int64_t parts, const Body& body) {
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) body(part, total * part / parts, total * (part + 1) / parts);
  });
}

// Stable least-significant-digit radix sort by cell number (of `cell_bits` bits); `items` and `spare` swap roles, the
// sorted one comes back. Each part counts its digits, the counts are laid end to end, each part moves its own items.
template <typename Item>
Item* radix_sort(Item* items, Item* spare, int64_t total, int index_bits, int cell_bits, int64_t parts) {
  constexpr int kWidest = 11;
  const int passes = (cell_bits + kWidest - 1) / kWidest;
  if (passes == 0) return items;
  const int width = (cell_bits + passes - 1) / passes;
  const int64_t digits = int64_t{1} << width;
  std::vector<int64_t> counts(parts * digits);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * width;
    const auto digit = [=](const Item& item) {
      return static_cast<int64_t>((item.cell(index_bits) >> shift) & static_cast<uint64_t>(digits - 1));
    };
    for_each_part(total, parts, [&](int64_t part, int64_t begin, int64_t end) {
      int64_t* count = counts.data() + part * digits;
      std::fill(count, count + digits, 0);
      for (int64_t i = begin; i < end; ++i) ++count[digit(items[i])];
    });
    int64_t start = 0;
    for (int64_t d = 0; d < digits; ++d) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t count = counts[part * digits + d];
        counts[part * digits + d] = start;
        start += count;
      }
    }
    for_each_part(total, parts, [&](int64_t part, int64_t begin, int64_t end) {
      int64_t* next = counts.data() + part * digits;
      for (int64_t i = begin; i < end; ++i) spare[next[digit(items[i])]++] = items[i];
    });
    std::swap(items, spare);
  }
  return items;
}

struct Assigned {
  at::Tensor coords, inverse, point, offset;
};

template <typename Item, typename scalar_t>
Assigned assign(const CellFrame& frame, const at::Tensor& points, const int64_t* batch, int64_t samples,
                int index_bits) {
  const int64_t total = points.size(0), row = points.stride(0);
  const int64_t grid = frame.size[0] * frame.size[1] * frame.size[2], outside = samples * grid;
  const int cell_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(outside)));
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), total / 4096));
  const auto* xyz = points.const_data_ptr<scalar_t>();
  const std::unique_ptr<Item[]> items(new Item[total]), spare(new Item[total]);
  for_each_part(total, parts, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t cell = grid_cell(frame, xyz + i * row);
      const int64_t number = cell < 0 ? outside : (batch ? batch[i] : 0) * grid + cell;
      items[i] = Item::make(number, i, index_bits);
    }
  });
  const Item* sorted = radix_sort(items.get(), spare.get(), total, index_bits, cell_bits, parts);

  const auto starts = [&](int64_t k) {
    const uint64_t cell = sorted[k].cell(index_bits);
    return cell != static_cast<uint64_t>(outside) && (k == 0 || cell != sorted[k - 1].cell(index_bits));
  };
  std::vector<int64_t> first_voxel(parts + 1, 0);
  for_each_part(total, parts, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t k = begin; k < end; ++k) count += starts(k);
    first_voxel[part + 1] = count;
  });
  for (int64_t part = 0; part < parts; ++part) first_voxel[part + 1] += first_voxel[part];
  const int64_t voxels = first_voxel[parts];

  const auto options = points.options().dtype(at::kLong);
  Assigned out{at::empty({voxels, 4}, options.dtype(at::kInt)), at::empty({total}, options),
               at::empty({total}, options), at::empty({voxels + 1}, options)};
  auto* coords = out.coords.template data_ptr<int32_t>();
  auto* inverse = out.inverse.template data_ptr<int64_t>();
  auto* point = out.point.template data_ptr<int64_t>();
  auto* offset = out.offset.template data_ptr<int64_t>();
  const auto* end_of_kept = std::partition_point(sorted, sorted + total, [&](const Item& item) {
    return item.cell(index_bits) != static_cast<uint64_t>(outside);
  });
  offset[voxels] = end_of_kept - sorted;
  for_each_part(total, parts, [&](int64_t part, int64_t begin, int64_t end) {
    int64_t voxel = first_voxel[part] - 1;
    for (int64_t k = begin; k < end; ++k) {
      if (starts(k)) {
        offset[++voxel] = k;
        cell_coordinates(frame, static_cast<int64_t>(sorted[k].cell(index_bits)), coords + 4 * voxel);
      }
      point[k] = sorted[k].point(index_bits);
      inverse[point[k]] = k < offset[voxels] ? voxel : -1;
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> voxel_assign_cpu(const at::Tensor& points_,
                                                                            const std::optional<at::Tensor>& batch_,
                                                                            at::ArrayRef<double> lower,
                                                                            at::ArrayRef<double> voxel_size,
                                                                            at::ArrayRef<int64_t> size) {
  const CellFrame frame = check_assign(points_, batch_, lower, voxel_size, size);
  const at::Tensor points = points_.stride(1) == 1 ? points_ : points_.contiguous();
  const at::Tensor batch = batch_.has_value() ? batch_->contiguous() : at::Tensor();
  const int64_t total = points.size(0);
  const int64_t* samples = batch.defined() ? batch.const_data_ptr<int64_t>() : nullptr;
  int64_t highest = 0;
  if (samples != nullptr && total > 0) {
    const auto [low, high] = std::minmax_element(samples, samples + total);
    TORCH_CHECK_VALUE(*low >= 0 && *high <= highest_sample(frame), "batch_index must be in 0..", highest_sample(frame),
                      " for this size, found ", *low < 0 ? *low : *high);
    highest = *high;
  }
  const uint64_t cells = static_cast<uint64_t>(highest + 1) * size[0] * size[1] * size[2];
  const int index_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(total)));
  const bool packs = static_cast<int>(std::bit_width(cells)) + index_bits <= 64;
  Assigned out;
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "voxel_assign", [&] {
    out = packs ? assign<PackedItem, scalar_t>(frame, points, samples, highest + 1, index_bits)
                : assign<WideItem, scalar_t>(frame, points, samples, highest + 1, index_bits);
  });
  return {out.coords, out.inverse, out.point, out.offset};
}

// ---------------------------------------------------------------------------------------------------------------------
// Limits: of the voxels of an assignment the first of each sample, of the points of a voxel the first. A voxel comes
// before another where its first point does.

void check_corrupt(const at::Tensor& inverse, const at::Tensor& point, const at::Tensor& offset) {
  const auto* points = point.const_data_ptr<int64_t>();
  const auto* starts = offset.const_data_ptr<int64_t>();
  const auto* voxel = inverse.const_data_ptr<int64_t>();
  const int64_t total = point.size(0), voxels = offset.size(0) - 1;
  int64_t kept = 0;
  for (int64_t i = 0; i < total; ++i) kept += voxel[i] >= 0;
  bool good = starts[0] == 0 && starts[voxels] == kept;
  for (int64_t v = 0; v < voxels; ++v) good &= starts[v] < starts[v + 1];
  for (int64_t k = 0; k < total; ++k) good &= points[k] >= 0 && points[k] < total;
  TORCH_CHECK_VALUE(good,
                    "inverse, point or offset is corrupt: they must come from voxel_assign and be passed on unchanged");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> voxel_limit_cpu(const at::Tensor& coords_,
                                                                           const at::Tensor& inverse_,
                                                                           const at::Tensor& point_,
                                                                           const at::Tensor& offset_,
                                                                           int64_t max_points, int64_t max_voxels) {
  check_limit(coords_, inverse_, point_, offset_, max_points, max_voxels);
  const at::Tensor coords = coords_.contiguous(), inverse = inverse_.contiguous();
  const at::Tensor point = point_.contiguous(), offset = offset_.contiguous();
  check_corrupt(inverse, point, offset);
  const int64_t total = inverse.size(0), voxels = coords.size(0);
  const auto* cell = coords.const_data_ptr<int32_t>();
  const auto* voxel = inverse.const_data_ptr<int64_t>();
  const auto* order = point.const_data_ptr<int64_t>();
  const auto* starts = offset.const_data_ptr<int64_t>();

  // The voxels of a sample follow one another: run v belongs to the sample that begins at voxel first_of_sample[v].
  std::vector<int64_t> first_of_sample(voxels), taken(voxels, 0), rank(voxels, -1);
  for (int64_t v = 0; v < voxels; ++v) {
    first_of_sample[v] = v > 0 && cell[4 * v] == cell[4 * (v - 1)] ? first_of_sample[v - 1] : v;
  }
  for (int64_t i = 0; i < total; ++i) {  // in order of arrival
    const int64_t v = voxel[i];
    TORCH_CHECK_VALUE(v >= -1 && v < voxels, "inverse must be in -1..", voxels - 1, ", found ", v);
    if (v < 0 || order[starts[v]] != i) continue;
    int64_t& count = taken[first_of_sample[v]];
    if (count < max_voxels) rank[v] = count++;
  }
  std::vector<int64_t> base(voxels), chosen;
  int64_t kept = 0;
  for (int64_t v = 0; v < voxels; ++v) {
    base[v] = kept;
    kept += taken[v];
  }
  chosen.resize(kept);
  for (int64_t v = 0; v < voxels; ++v) {
    if (rank[v] >= 0) chosen[base[first_of_sample[v]] + rank[v]] = v;
  }

  at::Tensor out_coords = at::empty({kept, 4}, coords.options()), out_inverse = at::empty({total}, inverse.options());
  at::Tensor out_point = at::empty({total}, point.options()), out_offset = at::empty({kept + 1}, offset.options());
  auto* to_cell = out_coords.data_ptr<int32_t>();
  auto* to_voxel = out_inverse.data_ptr<int64_t>();
  auto* to_point = out_point.data_ptr<int64_t>();
  auto* to_start = out_offset.data_ptr<int64_t>();
  std::fill(to_voxel, to_voxel + total, -1);
  to_start[0] = 0;
  for (int64_t n = 0; n < kept; ++n) {
    const int64_t v = chosen[n];
    to_start[n + 1] = to_start[n] + std::min(max_points, starts[v + 1] - starts[v]);
  }
  at::parallel_for(0, kept, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::copy(cell + 4 * chosen[n], cell + 4 * chosen[n] + 4, to_cell + 4 * n);
      const int64_t* from = order + starts[chosen[n]];
      for (int64_t k = to_start[n]; k < to_start[n + 1]; ++k) to_voxel[to_point[k] = *from++] = n;
    }
  });
  int64_t next = to_start[kept];
  for (int64_t i = 0; i < total && next < total; ++i) {
    if (to_voxel[i] < 0) to_point[next++] = i;
  }
  return {out_coords, out_inverse, out_point, out_offset};
}

// ---------------------------------------------------------------------------------------------------------------------
// Reduction

std::tuple<at::Tensor, at::Tensor> voxel_reduce_cpu(const at::Tensor& features_, const at::Tensor& inverse_,
                                                    const at::Tensor& point_, const at::Tensor& offset_,
                                                    int64_t reduce_) {
  const Reduce reduce = check_reduce(features_, inverse_, point_, offset_, reduce_);
  const at::Tensor features = features_.contiguous(), point = point_.contiguous(), offset = offset_.contiguous();
  check_corrupt(inverse_.contiguous(), point, offset);
  const int64_t columns = features.size(1), voxels = offset.size(0) - 1;
  const bool max = reduce == Reduce::kMax;
  at::Tensor out = at::empty({voxels, columns}, features.options());
  at::Tensor argmax = at::empty({max ? voxels : 0, columns}, point.options());
  const auto* order = point.const_data_ptr<int64_t>();
  const auto* starts = offset.const_data_ptr<int64_t>();
  auto* best = argmax.data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "voxel_reduce", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* rows = features.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, voxels, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) {
        const auto run = [&]<int W>(std::integral_constant<int, W>, int64_t column) {
          reduce_voxel<W, acc_t>(reduce, rows, columns, column, order, starts[v], starts[v + 1],
                                 to + v * columns + column, max ? best + v * columns + column : nullptr);
        };
        int64_t column = 0;
        for (; column + 8 <= columns; column += 8) run(std::integral_constant<int, 8>{}, column);
        for (; column + 4 <= columns; column += 4) run(std::integral_constant<int, 4>{}, column);
        for (; column < columns; ++column) run(std::integral_constant<int, 1>{}, column);
      }
    });
  });
  return {out, argmax};
}

at::Tensor voxel_reduce_backward_cpu(const at::Tensor& grad_, const at::Tensor& inverse_, const at::Tensor& point,
                                     const at::Tensor& offset_, const at::Tensor& argmax_, int64_t reduce_) {
  const Reduce reduce = check_reduce_grad(grad_, inverse_, point, offset_, argmax_, reduce_);
  const at::Tensor grad = grad_.contiguous(), inverse = inverse_.contiguous(), offset = offset_.contiguous();
  const at::Tensor argmax = argmax_.contiguous();
  const int64_t total = inverse.size(0), columns = grad.size(1), voxels = grad.size(0);
  const auto* voxel = inverse.const_data_ptr<int64_t>();
  const auto* starts = offset.const_data_ptr<int64_t>();
  const auto* best = argmax.const_data_ptr<int64_t>();
  at::Tensor out = at::empty({total, columns}, grad.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "voxel_reduce_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto* from = grad.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, total, 2048, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t v = voxel[i];
        TORCH_CHECK_VALUE(v >= -1 && v < voxels, "inverse must be in -1..", voxels - 1, ", found ", v);
        if (v < 0) {
          std::fill(to + i * columns, to + (i + 1) * columns, scalar_t(0));
          continue;
        }
        const acc_t count = reduce == Reduce::kMean ? static_cast<acc_t>(starts[v + 1] - starts[v]) : acc_t(1);
        for (int64_t c = 0; c < columns; ++c) {
          const bool reached = reduce != Reduce::kMax || best[v * columns + c] == i;
          to[i * columns + c] =
              reached ? static_cast<scalar_t>(static_cast<acc_t>(from[v * columns + c]) / count) : scalar_t(0);
        }
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("voxel_assign", &voxel_assign_cpu);
  m.impl("voxel_limit", &voxel_limit_cpu);
  m.impl("voxel_reduce", &voxel_reduce_cpu);
  m.impl("voxel_reduce_backward", &voxel_reduce_backward_cpu);
}

}  // namespace occforge
