// Sparse convolution on the CPU.
//
// Neighbour maps: active voxels are kept as columns along z, 64 voxels a segment, in a hash table from the segment's
// number to a bit mask and the rank of its first voxel. A 3x3x3 kernel then costs 9 probes a segment, and a neighbour
// is a bit test and a population count.
//
// Convolution: blocks of output rows are summed in a buffer that stays in the first-level cache; the rows of the input
// are multiplied from where they are (nothing is gathered into a copy), a few at a time against two vectors of output
// channels held in registers. Blocks depend on the sizes alone and belong to one thread each, so that the result is the
// same at every number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "voxel/sparse_conv_kernel.h"

namespace occforge::sparse {

// Numbers of strips: 16 places along y times 64 along z.
struct StripNumbers {
  static constexpr int64_t kWidth = 16;  // key() shifts by 4
  int64_t x, strips_y, segments_z;

  explicit StripNumbers(const Grid& grid)
      : x(grid.x), strips_y((grid.y + kWidth - 1) / kWidth), segments_z((grid.z + 63) >> 6) {}
  // of the strip that holds (b, i, j, z = 0); add z >> 6
  int64_t key(int64_t b, int64_t i, int64_t j) const { return ((b * x + i) * strips_y + (j >> 4)) * segments_z; }
};

struct Segment {
  uint64_t mask;  // bit z % 64: the voxel is active
  int64_t start;  // number of active voxels before it, in lexicographic order
};

// Open addressing from the number of a strip to its position in a list.
class StripTable {
 public:
  struct Slot {
    int64_t key;
    int32_t place;  // -1: free
  };

  StripTable() : slots_(256, {-1, -1}) {}
  // Position of a strip; a new one gets position size().
  int32_t insert(int64_t key) {
    Slot* slot = &probe(slots_, key);
    if (slot->place >= 0) return slot->place;
    *slot = {key, size_++};
    if (2 * static_cast<size_t>(size_) > slots_.size()) {
      std::vector<Slot> larger(2 * slots_.size(), {-1, -1});
      for (const Slot& old : slots_)
        if (old.place >= 0) probe(larger, old.key) = old;
      slots_.swap(larger);
    }
    return size_ - 1;
  }
  int32_t size() const { return size_; }
  const std::vector<Slot>& slots() const { return slots_; }

 private:
  static Slot& probe(std::vector<Slot>& slots, int64_t key) {
    for (uint64_t at = mix(static_cast<uint64_t>(key));; ++at) {
      Slot& slot = slots[at & (slots.size() - 1)];
      if (slot.key == key || slot.place < 0) return slot;
    }
  }

  std::vector<Slot> slots_;
  int32_t size_ = 0;
};

// The active voxels as the inner loops see them.
struct VoxelView {
  Grid grid;
  StripNumbers strips;
  int64_t last_batch;
  const StripTable::Slot* slots;
  uint64_t slot_mask;
  const int32_t* members;   // (1 + strips, kWidth): positions of segments
  const int32_t* nowhere;   // a strip without voxels
  const Segment* segments;  // the first one is empty
  const int32_t* order;     // rank -> row, null where they are equal

  const int32_t* find(int64_t key) const {
    for (uint64_t at = mix(static_cast<uint64_t>(key));; ++at) {
      const StripTable::Slot& slot = slots[at & slot_mask];
      if (slot.place < 0) return nowhere;
      if (slot.key == key) return members + (slot.place + 1) * StripNumbers::kWidth;
    }
  }
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define OCC_SIMD_VARIANTS 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,popcnt,bmi,bmi2,prefer-vector-width=512")
namespace avx512 {
#define OCC_SIMD_BYTES 64
#define OCC_SIMD_ROWS 8
#include "voxel/sparse_conv_simd.h"
#undef OCC_SIMD_BYTES
#undef OCC_SIMD_ROWS
}  // namespace avx512
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt,bmi,bmi2")
namespace avx2 {
#define OCC_SIMD_BYTES 32
#define OCC_SIMD_ROWS 4
#include "voxel/sparse_conv_simd.h"
#undef OCC_SIMD_BYTES
#undef OCC_SIMD_ROWS
}  // namespace avx2
#pragma GCC pop_options
#endif
namespace baseline {
#define OCC_SIMD_BYTES 16
#define OCC_SIMD_ROWS 4
#include "voxel/sparse_conv_simd.h"
#undef OCC_SIMD_BYTES
#undef OCC_SIMD_ROWS
}  // namespace baseline

namespace {

// The inner loops for this machine.
template <typename T>
struct Kernels {
  int lanes;
  decltype(&baseline::conv_rows<T>) conv_rows;
  decltype(&baseline::weight_rows<T>) weight_rows;
  decltype(&baseline::map_rows) map_rows;

  static const Kernels& get() {
    static const Kernels chosen = choose();
    return chosen;
  }

 private:
  static Kernels choose() {
#ifdef OCC_SIMD_VARIANTS
    // torch's own choice, so that ATEN_CPU_CAPABILITY=avx2 or =default reaches these kernels too
    const std::string capability = at::get_cpu_capability();
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                          __builtin_cpu_supports("popcnt");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (has_avx512 && capability == "AVX512")
      return {avx512::Lanes<T>::kCount, &avx512::conv_rows<T>, &avx512::weight_rows<T>, &avx512::map_rows};
    if (has_avx2 && (capability == "AVX512" || capability == "AVX2"))
      return {avx2::Lanes<T>::kCount, &avx2::conv_rows<T>, &avx2::weight_rows<T>, &avx2::map_rows};
#endif
    return {baseline::Lanes<T>::kCount, &baseline::conv_rows<T>, &baseline::weight_rows<T>, &baseline::map_rows};
  }
};

// Runs work(task) for every task, whichever thread is free taking the next: a task must write to places of its own.
template <typename Work>
void for_each_task(int64_t tasks, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task = next++; task < tasks; task = next++) work(task);
  });
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sorts by key, least significant digits first; digits that all keys share are skipped.
template <typename Value>
void radix_sort(std::vector<std::pair<int64_t, Value>>& items) {
  constexpr int kBits = 11;
  constexpr size_t kBuckets = size_t{1} << kBits;
  int64_t low = std::numeric_limits<int64_t>::max(), high = 0;
  for (const auto& item : items) low = std::min(low, item.first), high = std::max(high, item.first);
  std::vector<std::pair<int64_t, Value>> other(items.size());
  std::vector<size_t> place(kBuckets);
  for (int shift = 0; shift < 63 && (high - low) >> shift != 0; shift += kBits) {
    std::fill(place.begin(), place.end(), 0);
    for (const auto& item : items) ++place[((item.first - low) >> shift) & (kBuckets - 1)];
    size_t start = 0;
    for (size_t& bucket : place) start += std::exchange(bucket, start);
    for (const auto& item : items) other[place[((item.first - low) >> shift) & (kBuckets - 1)]++] = item;
    items.swap(other);
  }
}

// The active voxels of a batch, to be looked up; refuses voxels outside the grid and repeated ones.
class VoxelTable {
 public:
  VoxelTable(const int32_t* coords, int64_t count, const Grid& grid) : grid_(grid), strips_(grid) {
    bool sorted = true;
    int64_t previous = -1;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t* const at = coords + 4 * i;
      TORCH_CHECK_VALUE(
          at[0] >= 0 && at[1] >= 0 && at[1] < grid.x && at[2] >= 0 && at[2] < grid.y && at[3] >= 0 && at[3] < grid.z,
          "coords: row ", i, " is (batch, x, y, z) = (", at[0], ", ", at[1], ", ", at[2], ", ", at[3],
          "), outside the grid of ", grid.x, " x ", grid.y, " x ", grid.z);
      last_batch_ = std::max<int64_t>(last_batch_, at[0]);
    }
    check_batches(last_batch_, grid);
    for (int64_t i = 0; i < count && sorted; ++i) {
      const int64_t key = grid.key(coords[4 * i], coords[4 * i + 1], coords[4 * i + 2], coords[4 * i + 3]);
      sorted = key > previous;
      previous = key;
    }
    if (!sorted) {
      std::vector<std::pair<int64_t, int32_t>> rows(count);
      for (int64_t i = 0; i < count; ++i)
        rows[i] = {grid.key(coords[4 * i], coords[4 * i + 1], coords[4 * i + 2], coords[4 * i + 3]),
                   static_cast<int32_t>(i)};
      radix_sort(rows);
      order_.resize(count);
      for (int64_t i = 0; i < count; ++i) {
        order_[i] = rows[i].second;
        if (i > 0 && rows[i].first == rows[i - 1].first) {
          const int32_t* const at = coords + 4 * static_cast<int64_t>(rows[i].second);
          TORCH_CHECK_VALUE(false, "coords: the voxel (batch, x, y, z) = (", at[0], ", ", at[1], ", ", at[2], ", ",
                            at[3], ") is named by rows ", rows[i - 1].second, " and ", rows[i].second);
        }
      }
    }
    int64_t known = -1, previous_strip = -1;
    int32_t place = -1;
    for (int64_t rank = 0; rank < count; ++rank) {
      const int32_t* const at = coords + 4 * static_cast<int64_t>(sorted ? rank : order_[rank]);
      const int64_t strip = strips_.key(at[0], at[1], at[2]) + (at[3] >> 6);
      const int64_t key = strip * StripNumbers::kWidth + at[2] % StripNumbers::kWidth;
      if (key != known) {
        known = key;
        if (strip != previous_strip) {
          previous_strip = strip;
          place = table_.insert(strip);
          members_.resize((table_.size() + 1) * StripNumbers::kWidth, 0);
        }
        members_[(place + 1) * StripNumbers::kWidth + at[2] % StripNumbers::kWidth] =
            static_cast<int32_t>(segments_.size());
        segments_.push_back({0, rank});
      }
      segments_.back().mask |= uint64_t{1} << (at[3] & 63);
    }
  }

  VoxelView view() const {
    return {grid_,
            strips_,
            last_batch_,
            table_.slots().data(),
            table_.slots().size() - 1,
            members_.data(),
            members_.data(),
            segments_.data(),
            order_.empty() ? nullptr : order_.data()};
  }

 private:
  Grid grid_;
  StripNumbers strips_;
  int64_t last_batch_ = 0;
  StripTable table_;
  std::vector<Segment> segments_ = {{0, 0}};  // the first one is empty, and so is the first strip
  std::vector<int32_t> members_ = std::vector<int32_t>(StripNumbers::kWidth, 0), order_;
};

at::Tensor sparse_sites_cpu(const at::Tensor& coords_, at::IntArrayRef out_shape, at::IntArrayRef kernel,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                            bool transposed) {
  check_coords("coords", coords_);
  const Grid grid = make_grid("out_shape", out_shape);
  const Geometry geometry = make_geometry(kernel, stride, padding, dilation, transposed);
  const at::Tensor coords = coords_.contiguous();
  const int64_t count = coords.size(0);
  const int32_t* const rows = coords.const_data_ptr<int32_t>();
  int64_t last_batch = 0;
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(rows[4 * i] >= 0, "coords: row ", i, " has batch index ", rows[4 * i]);
    last_batch = std::max<int64_t>(last_batch, rows[4 * i]);
  }
  check_batches(last_batch, grid);

  const StripNumbers strips(grid);
  StripTable table;
  std::vector<std::pair<int64_t, int32_t>> found;                 // strips by number, and their positions
  std::vector<std::array<uint64_t, StripNumbers::kWidth>> marks;  // bit masks along z of the places of a strip
  const int32_t width = geometry.axis[1].kernel;
  // the last strip of each tap column: neighbouring inputs mostly reach the same
  std::vector<std::pair<int64_t, int32_t>> last(static_cast<size_t>(geometry.axis[0].kernel) * width, {-1, -1});
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* const at = rows + 4 * i;
    for (int32_t kx = 0; kx < geometry.axis[0].kernel; ++kx) {
      const int64_t x = geometry.sink(0, at[1], kx);
      if (x < 0 || x >= grid.x) continue;
      for (int32_t ky = 0; ky < width; ++ky) {
        const int64_t y = geometry.sink(1, at[2], ky);
        if (y < 0 || y >= grid.y) continue;
        auto& [known, place] = last[kx * width + ky];
        for (int32_t kz = 0; kz < geometry.axis[2].kernel; ++kz) {
          const int64_t z = geometry.sink(2, at[3], kz);
          if (z < 0 || z >= grid.z) continue;
          const int64_t key = strips.key(at[0], x, y) + (z >> 6);
          if (key != known) {
            known = key;
            place = table.insert(key);
            if (static_cast<size_t>(place) == marks.size()) {
              marks.push_back({});
              found.emplace_back(key, place);
            }
          }
          marks[place][y % StripNumbers::kWidth] |= uint64_t{1} << (z & 63);
        }
      }
    }
  }
  // Lexicographic order puts y before the segments along z: sort the strips by (b, x, strip along y, segment along z)
  // and go through the segments along z of a strip place by place.
  radix_sort(found);
  int64_t sites = 0;
  for (const auto& mark : marks)
    for (const uint64_t mask : mark) sites += __builtin_popcountll(mask);
  TORCH_CHECK_VALUE(sites < (int64_t{1} << 31), "coords: ", sites, " output voxels, at most 2^31 - 1 can be indexed");
  at::Tensor result = at::empty({sites, 4}, coords.options());
  int32_t* out = result.data_ptr<int32_t>();
  for (size_t begin = 0, end = 0; begin < found.size(); begin = end) {
    const int64_t along_y = found[begin].first / strips.segments_z;
    while (end < found.size() && found[end].first / strips.segments_z == along_y) ++end;
    const int64_t b = along_y / (strips.strips_y * grid.x), x = along_y / strips.strips_y % grid.x;
    for (int64_t j = 0; j < StripNumbers::kWidth; ++j) {
      for (size_t n = begin; n < end; ++n) {
        const int64_t z = found[n].first % strips.segments_z * 64;
        for (uint64_t mask = marks[found[n].second][j]; mask != 0; mask &= mask - 1, out += 4) {
          out[0] = static_cast<int32_t>(b);
          out[1] = static_cast<int32_t>(x);
          out[2] = static_cast<int32_t>(along_y % strips.strips_y * StripNumbers::kWidth + j);
          out[3] = static_cast<int32_t>(z + __builtin_ctzll(mask));
        }
      }
    }
  }
  return result;
}

at::Tensor sparse_map_cpu(const at::Tensor& coords_, const at::Tensor& out_coords_, at::IntArrayRef spatial_shape,
                          at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                          at::IntArrayRef dilation, bool transposed) {
  check_coords("coords", coords_);
  check_coords("out_coords", out_coords_);
  const Geometry geometry = make_geometry(kernel, stride, padding, dilation, transposed);
  const at::Tensor coords = coords_.contiguous(), out_coords = out_coords_.contiguous();
  const VoxelTable table(coords.const_data_ptr<int32_t>(), coords.size(0), make_grid("spatial_shape", spatial_shape));
  const VoxelView view = table.view();
  const int64_t outputs = out_coords.size(0);
  at::Tensor index = at::empty({geometry.taps(), outputs}, coords.options());
  const int32_t* const at = out_coords.const_data_ptr<int32_t>();
  auto* const map = index.data_ptr<int32_t>();
  constexpr int64_t kRows = 1024;
  for_each_task(ceil_div(outputs, kRows), [&](int64_t task) {
    Kernels<float>::get().map_rows(view, geometry, at, task * kRows, std::min(outputs, (task + 1) * kRows), map,
                                   outputs);
  });
  return index;
}

at::Tensor sparse_transpose_map_cpu(const at::Tensor& index_, int64_t num_in) {
  check_map("index", index_, index_);
  TORCH_CHECK_VALUE(num_in >= 0, "num_in must not be negative, found ", num_in);
  const at::Tensor index = index_.contiguous();
  const int64_t taps = index.size(0), outputs = index.size(1);
  at::Tensor result = at::empty({taps, num_in}, index.options());
  const int32_t* const from = index.const_data_ptr<int32_t>();
  auto* const to = result.data_ptr<int32_t>();
  std::atomic<bool> good{true};
  for_each_task(taps, [&](int64_t k) {
    int32_t* const row = to + k * num_in;
    std::fill(row, row + num_in, -1);
    bool fine = true;
    for (int64_t o = 0; o < outputs; ++o) {
      const int32_t i = from[k * outputs + o];
      const bool found = static_cast<uint32_t>(i) < static_cast<uint64_t>(num_in);
      fine &= found | (i == -1);
      if (found) row[i] = static_cast<int32_t>(o);
    }
    if (!fine) good = false;
  });
  TORCH_CHECK_VALUE(good, "index: expected -1 or a row below ", num_in, ", found another value");
  return result;
}

// (C_out, K, C_in) in any strides -> (K, panels of columns, C_in, columns of the panel), zero-padded to whole vectors.
template <typename T>
std::vector<T> pack_weight(const at::Tensor& weight, int64_t columns, int64_t lanes) {
  const int64_t outputs = weight.size(0), taps = weight.size(1), channels = weight.size(2);
  std::vector<T> packed(static_cast<size_t>(taps * channels * columns));
  const T* const from = weight.const_data_ptr<T>();
  const int64_t so = weight.stride(0), sk = weight.stride(1), sc = weight.stride(2);
  for_each_task(taps, [&](int64_t k) {
    T* to = packed.data() + k * channels * columns;
    for (int64_t first = 0; first < columns; first += 2 * lanes) {
      const int64_t width = std::min(2 * lanes, columns - first);
      for (int64_t c = 0; c < channels; ++c, to += width)
        for (int64_t o = first; o < std::min(outputs, first + width); ++o)
          to[o - first] = from[o * so + k * sk + c * sc];
    }
  });
  return packed;
}

template <typename T>
void conv_forward(const at::Tensor& features, const at::Tensor& weight, const at::Tensor& index, at::Tensor& result) {
  const Kernels<T>& kernels = Kernels<T>::get();
  const int64_t rows = features.size(0), channels = features.size(1), width = weight.size(0);
  const int64_t taps = index.size(0), outputs = index.size(1);
  const int64_t columns = std::max<int64_t>(1, ceil_div(width, kernels.lanes)) * kernels.lanes;
  const std::vector<T> packed = pack_weight<T>(weight, columns, kernels.lanes);
  // 32 KiB of sums, in whole sixteens of rows
  const int64_t block = std::clamp<int64_t>(32768 / static_cast<int64_t>(sizeof(T)) / columns / 16 * 16, 16, 256);
  const T* const x = features.const_data_ptr<T>();
  const int32_t* const map = index.const_data_ptr<int32_t>();
  T* const out = result.data_ptr<T>();
  std::atomic<bool> good{true};
  const int64_t blocks = ceil_div(outputs, block), group = 4;
  for_each_task(ceil_div(blocks, group), [&](int64_t task) {
    std::vector<T> sum(block * columns);
    std::vector<const T*> from(block);
    std::vector<T*> to(block);
    for (int64_t b = task * group; b < std::min(blocks, (task + 1) * group); ++b) {
      const int64_t begin = b * block, end = std::min(outputs, begin + block);
      std::fill(sum.begin(), sum.end(), T(0));
      if (!kernels.conv_rows(map, outputs, taps, begin, end, x, rows, channels, packed.data(), columns, sum.data(),
                             from.data(), to.data()))
        good = false;
      for (int64_t o = begin; o < end; ++o) std::copy_n(sum.data() + (o - begin) * columns, width, out + o * width);
    }
  });
  TORCH_CHECK_VALUE(good, "index: expected -1 or a row below ", rows, ", found another value");
}

// float16 and bfloat16 are computed in float32
at::ScalarType wide(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor sparse_conv_cpu(const at::Tensor& features_, const at::Tensor& weight_, const at::Tensor& index_,
                           const std::optional<at::Tensor>& index_t) {
  check_conv(features_, weight_, index_, index_t);
  const at::ScalarType type = wide(features_.scalar_type());
  const at::Tensor features = features_.to(type).contiguous(), index = index_.contiguous();
  const at::Tensor weight = weight_.to(type);
  at::Tensor result = at::empty({index.size(1), weight.size(0)}, features.options());
  if (type == at::kDouble) {
    conv_forward<double>(features, weight, index, result);
  } else {
    conv_forward<float>(features, weight, index, result);
  }
  return result.to(features_.scalar_type());
}

template <typename T>
void weight_gradient(const at::Tensor& features, const at::Tensor& grad, const at::Tensor& index, at::Tensor& result) {
  const Kernels<T>& kernels = Kernels<T>::get();
  const int64_t rows = features.size(0), channels = features.size(1), width = grad.size(1);
  const int64_t taps = index.size(0), outputs = index.size(1);
  const int64_t columns = std::max<int64_t>(1, ceil_div(width, kernels.lanes)) * kernels.lanes;
  at::Tensor padded = grad;
  if (columns != width) {
    padded = at::zeros({outputs, columns}, grad.options());
    padded.narrow(1, 0, width).copy_(grad);
  }
  const T* const x = features.const_data_ptr<T>();
  const T* const y = padded.const_data_ptr<T>();
  const int32_t* const map = index.const_data_ptr<int32_t>();
  T* const out = result.data_ptr<T>();
  constexpr int64_t kChunk = 32, kBlock = 256;
  const int64_t chunks = ceil_div(channels, kChunk);
  std::atomic<bool> good{true};
  for_each_task(taps * chunks, [&](int64_t task) {
    const int64_t k = task / chunks, from = task % chunks * kChunk, to = std::min(channels, from + kChunk);
    std::vector<T> total((to - from) * columns);
    std::vector<const T*> left(kBlock), right(kBlock);
    if (!kernels.weight_rows(map + k * outputs, outputs, x, rows, channels, y, columns, from, to, total.data(),
                             left.data(), right.data(), kBlock))
      good = false;
    for (int64_t o = 0; o < width; ++o)
      for (int64_t c = from; c < to; ++c) out[(o * taps + k) * channels + c] = total[(c - from) * columns + o];
  });
  TORCH_CHECK_VALUE(good, "index: expected -1 or a row below ", rows, ", found another value");
}

at::Tensor sparse_conv_weight_cpu(const at::Tensor& features_, const at::Tensor& grad_, const at::Tensor& index_,
                                  const std::optional<at::Tensor>& index_t) {
  check_weight_grad(features_, grad_, index_, index_t);
  const at::ScalarType type = wide(features_.scalar_type());
  const at::Tensor features = features_.to(type).contiguous(), grad = grad_.to(type).contiguous();
  const at::Tensor index = index_.contiguous();
  at::Tensor result = at::empty({grad.size(1), index.size(0), features.size(1)}, features.options());
  if (type == at::kDouble) {
    weight_gradient<double>(features, grad, index, result);
  } else {
    weight_gradient<float>(features, grad, index, result);
  }
  return result.to(features_.scalar_type());
}

constexpr int64_t kPoolRows = 512;

template <typename T>
bool sum_rows(const T* x, int64_t rows, int64_t channels, const int32_t* map, int64_t taps, int64_t outputs,
              int64_t begin, int64_t end, T* out) {
  bool good = true;
  std::fill(out + begin * channels, out + end * channels, T(0));
  for (int64_t k = 0; k < taps; ++k) {
    for (int64_t o = begin; o < end; ++o) {
      const int32_t i = map[k * outputs + o];
      if (static_cast<uint32_t>(i) >= static_cast<uint64_t>(rows)) {
        good &= i == -1;
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) out[o * channels + c] += x[i * channels + c];
    }
  }
  return good;
}

at::Tensor sparse_sum_pool_cpu(const at::Tensor& features_, const at::Tensor& index_,
                               const std::optional<at::Tensor>& index_t) {
  check_maps(features_, index_, index_t);
  const at::Tensor features = features_.to(wide(features_.scalar_type())).contiguous(), index = index_.contiguous();
  const int64_t rows = features.size(0), channels = features.size(1), taps = index.size(0), outputs = index.size(1);
  at::Tensor result = at::empty({outputs, channels}, features.options());
  const int32_t* const map = index.const_data_ptr<int32_t>();
  std::atomic<bool> good{true};
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "sparse_sum_pool", [&] {
    const scalar_t* const x = features.const_data_ptr<scalar_t>();
    scalar_t* const out = result.data_ptr<scalar_t>();
    for_each_task(ceil_div(outputs, kPoolRows), [&](int64_t task) {
      const int64_t begin = task * kPoolRows, end = std::min(outputs, begin + kPoolRows);
      if (!sum_rows(x, rows, channels, map, taps, outputs, begin, end, out)) good = false;
    });
  });
  TORCH_CHECK_VALUE(good, "index: expected -1 or a row below ", rows, ", found another value");
  return result.to(features_.scalar_type());
}

template <typename T>
bool max_rows(const T* x, int64_t rows, int64_t channels, const int32_t* map, int64_t taps, int64_t outputs,
              int64_t begin, int64_t end, T* out, int32_t* winner) {
  bool good = true;
  std::fill(out + begin * channels, out + end * channels, T(0));
  std::fill(winner + begin * channels, winner + end * channels, -1);
  for (int64_t k = 0; k < taps; ++k) {
    for (int64_t o = begin; o < end; ++o) {
      const int32_t i = map[k * outputs + o];
      if (static_cast<uint32_t>(i) >= static_cast<uint64_t>(rows)) {
        good &= i == -1;
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        T& best = out[o * channels + c];
        int32_t& from = winner[o * channels + c];
        const T value = x[i * channels + c];
        if (from < 0 || value > best) best = value, from = i;
      }
    }
  }
  return good;
}

std::tuple<at::Tensor, at::Tensor> sparse_max_pool_cpu(const at::Tensor& features_, const at::Tensor& index_,
                                                       const std::optional<at::Tensor>& index_t) {
  check_maps(features_, index_, index_t);
  const at::Tensor features = features_.to(wide(features_.scalar_type())).contiguous(), index = index_.contiguous();
  const int64_t rows = features.size(0), channels = features.size(1), taps = index.size(0), outputs = index.size(1);
  at::Tensor result = at::empty({outputs, channels}, features.options());
  at::Tensor winner = at::empty({outputs, channels}, index.options());
  const int32_t* const map = index.const_data_ptr<int32_t>();
  auto* const from = winner.data_ptr<int32_t>();
  std::atomic<bool> good{true};
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "sparse_max_pool", [&] {
    const scalar_t* const x = features.const_data_ptr<scalar_t>();
    scalar_t* const out = result.data_ptr<scalar_t>();
    for_each_task(ceil_div(outputs, kPoolRows), [&](int64_t task) {
      const int64_t begin = task * kPoolRows, end = std::min(outputs, begin + kPoolRows);
      if (!max_rows(x, rows, channels, map, taps, outputs, begin, end, out, from)) good = false;
    });
  });
  TORCH_CHECK_VALUE(good, "index: expected -1 or a row below ", rows, ", found another value");
  return {result.to(features_.scalar_type()), winner};
}

at::Tensor sparse_max_pool_backward_cpu(const at::Tensor& grad_, const at::Tensor& winner_,
                                        const at::Tensor& index_t_) {
  check_max_backward(grad_, winner_, index_t_);
  const at::Tensor grad = grad_.to(wide(grad_.scalar_type())).contiguous();
  const at::Tensor winner = winner_.contiguous(), index_t = index_t_.contiguous();
  const int64_t outputs = grad.size(0), channels = grad.size(1), taps = index_t.size(0), rows = index_t.size(1);
  at::Tensor result = at::zeros({rows, channels}, grad.options());
  const int32_t* const map = index_t.const_data_ptr<int32_t>();
  const int32_t* const from = winner.const_data_ptr<int32_t>();
  std::atomic<bool> good{true};
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "sparse_max_pool_backward", [&] {
    const scalar_t* const y = grad.const_data_ptr<scalar_t>();
    scalar_t* const out = result.data_ptr<scalar_t>();
    for_each_task(ceil_div(rows, kPoolRows), [&](int64_t task) {
      for (int64_t k = 0; k < taps; ++k) {
        for (int64_t i = task * kPoolRows; i < std::min(rows, (task + 1) * kPoolRows); ++i) {
          const int32_t o = map[k * rows + i];
          if (static_cast<uint32_t>(o) >= static_cast<uint64_t>(outputs)) {
            if (o != -1) good = false;
            continue;
          }
          for (int64_t c = 0; c < channels; ++c)
            if (from[o * channels + c] == i) out[i * channels + c] += y[o * channels + c];
        }
      }
    });
  });
  TORCH_CHECK_VALUE(good, "index_t: expected -1 or a row below ", outputs, ", found another value");
  return result.to(grad_.scalar_type());
}

}  // namespace
}  // namespace occforge::sparse

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  using namespace occforge::sparse;
  m.impl("sparse_sites", &sparse_sites_cpu);
  m.impl("sparse_map", &sparse_map_cpu);
  m.impl("sparse_transpose_map", &sparse_transpose_map_cpu);
  m.impl("sparse_conv", &sparse_conv_cpu);
  m.impl("sparse_conv_weight", &sparse_conv_weight_cpu);
  m.impl("sparse_sum_pool", &sparse_sum_pool_cpu);
  m.impl("sparse_max_pool", &sparse_max_pool_cpu);
  m.impl("sparse_max_pool_backward", &sparse_max_pool_backward_cpu);
}
