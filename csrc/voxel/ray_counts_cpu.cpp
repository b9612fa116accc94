// Eight rays at a time through both grids at once. Every cell is two bits (predicted, true: not free) of a padded copy
// whose border counts as occupied in both, so a walk needs no test for leaving the grid and a ray whose two walks have
// found something stands still. The order of the cells is that of walk_grid: the same faces, the same ties.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "voxel/ray_counts_check.h"

// Vectors are passed between functions that are inlined into each other only: no calling convention matters.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace occforge {
namespace {

constexpr int kVectors = 3;
constexpr int kWidth = 4;
constexpr int kLanes = kVectors * kWidth;
constexpr int kKeyShift = 20;  // a cell's key: index of its column's first word << kKeyShift | z + 1

typedef double Reals __attribute__((vector_size(kWidth * sizeof(double))));
typedef int64_t Integers __attribute__((vector_size(kWidth * sizeof(int64_t))));

// The padded copy: per column (x, y) `words` 64-bit words, whose bit b of the low half is the predicted and of the high
// half the true state of z + 1 = 32 word + b.
struct BitGrid {
  int64_t size[3], words, row;
  double row_inverse;
  std::vector<uint64_t> bits;

  explicit BitGrid(const GridFrame& frame)
      : size{frame.size[0], frame.size[1], frame.size[2]},
        words((frame.size[2] + 2 + 31) / 32),
        row((frame.size[1] + 2) * words),
        row_inverse(1.0 / static_cast<double>(row)),
        bits(static_cast<size_t>((frame.size[0] + 2) * row)) {}

  int64_t key(const int64_t* cell) const {
    return (((cell[0] + 1) * row + (cell[1] + 1) * words) << kKeyShift) + cell[2] + 1;
  }

  // False for a cell of the border.
  bool cell(int64_t key, int64_t* out) const {
    const int64_t column = key >> kKeyShift;
    out[0] = static_cast<int64_t>((static_cast<double>(column) + 0.5) * row_inverse) - 1;
    out[1] = (column - (out[0] + 1) * row) / words - 1;
    out[2] = (key & ((int64_t{1} << kKeyShift) - 1)) - 1;
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) inside &= out[axis] >= 0 && out[axis] < size[axis];
    return inside;
  }
};

// Bit i: whether byte i is not `free`.
OCC_HD uint64_t occupied_bits(const uint8_t* labels, int64_t count, uint8_t free) {
  uint64_t bits = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (count == 8) {
    constexpr uint64_t kOnes = 0x0101010101010101u, kLow = 0x7f * kOnes;
    std::memcpy(&bits, labels, 8);
    bits ^= free * kOnes;
    bits = ((((bits & kLow) + kLow) | bits) >> 7) & kOnes;
    return (bits * 0x0102040810204080u) >> 56;
  }
#endif
  for (int64_t i = 0; i < count; ++i) bits |= uint64_t{labels[i] != free} << i;
  return bits;
}

OCC_CLONES void fill_column(const uint8_t* pred, const uint8_t* target, int64_t height, uint8_t free, uint64_t* words) {
  for (int64_t z = 0; z < height; z += 8) {
    const int64_t count = std::min<int64_t>(8, height - z), at = z + 1;
    const uint64_t p = occupied_bits(pred + z, count, free) << (at & 31);
    const uint64_t t = occupied_bits(target + z, count, free) << (at & 31);
    words[at >> 5] |= (p & 0xffffffffu) | (t << 32);
    if ((p | t) >> 32) words[(at >> 5) + 1] |= (p >> 32) | (t >> 32 << 32);
  }
}

void fill(const GridFrame& frame, const uint8_t* pred, const uint8_t* target, uint8_t free, BitGrid& grid) {
  const int64_t columns = frame.size[1] + 2, height = frame.size[2];
  at::parallel_for(0, frame.size[0] + 2, 16, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; ++x) {
      for (int64_t y = 0; y < columns; ++y) {
        uint64_t* words = grid.bits.data() + x * grid.row + y * grid.words;
        const bool border = x == 0 || x > frame.size[0] || y == 0 || y > frame.size[1];
        std::fill(words, words + grid.words, border ? ~uint64_t{0} : 0);
        constexpr uint64_t kBoth = (uint64_t{1} << 32) | 1;
        words[0] |= kBoth;
        words[(height + 1) >> 5] |= kBoth << ((height + 1) & 31);
        if (border) continue;
        const int64_t at = ((x - 1) * frame.size[1] + y - 1) * height;
        fill_column(pred + at, target + at, height, free, words);
      }
    }
  });
}

// State of kLanes rays, axis by axis; see Walk.
struct Rays {
  alignas(64) double origin[3][kLanes], inverse[3][kLanes], face[3][kLanes], step[3][kLanes], t[kLanes];
  alignas(64) int64_t key[kLanes], stride[3][kLanes];
  alignas(64) double pred_exit[kLanes], target_exit[kLanes];
  alignas(64) int64_t pred_key[kLanes], target_key[kLanes], under_way[kLanes];  // under_way: 0 or -1

  void set(int lane, const Walk& walk, const BitGrid& grid) {
    const int64_t strides[3] = {grid.row << kKeyShift, grid.words << kKeyShift, 1};
    for (int axis = 0; axis < 3; ++axis) {
      const bool moves = walk.step[axis] != 0;
      origin[axis][lane] = walk.o[axis];
      // without motion: a face that is never reached
      inverse[axis][lane] = moves ? walk.inverse[axis] : std::numeric_limits<double>::infinity();
      face[axis][lane] = moves ? static_cast<double>(walk.cell[axis] + (walk.step[axis] > 0)) : walk.o[axis] + 1.0;
      step[axis][lane] = walk.step[axis];
      stride[axis][lane] = walk.step[axis] * strides[axis];
    }
    t[lane] = walk.t;
    key[lane] = grid.key(walk.cell);
    under_way[lane] = -1;
  }

  // A ray that touches nothing: it stands in the corner of the border.
  void clear(int lane) {
    for (int axis = 0; axis < 3; ++axis) {
      origin[axis][lane] = step[axis][lane] = 0.0;
      inverse[axis][lane] = face[axis][lane] = 1.0;
      stride[axis][lane] = 0;
    }
    t[lane] = 0.0;
    key[lane] = under_way[lane] = 0;
  }
};

OCC_HD Reals choose(Integers mask, Reals a, Reals b) {
  return reinterpret_cast<Reals>((mask & reinterpret_cast<Integers>(a)) | (~mask & reinterpret_cast<Integers>(b)));
}

OCC_HD Reals load(const double* at) {
  Reals value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

OCC_HD Integers load(const int64_t* at) {
  Integers value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

OCC_CLONES void march(const uint64_t* words, Rays& rays) {
  Reals origin[kVectors][3], inverse[kVectors][3], face[kVectors][3], step[kVectors][3], t[kVectors];
  Reals pred_exit[kVectors], target_exit[kVectors];
  Integers key[kVectors], stride[kVectors][3], pred_key[kVectors], target_key[kVectors];
  Integers seek_pred[kVectors], seek_target[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kWidth;
    for (int axis = 0; axis < 3; ++axis) {
      origin[v][axis] = load(rays.origin[axis] + at);
      inverse[v][axis] = load(rays.inverse[axis] + at);
      face[v][axis] = load(rays.face[axis] + at);
      step[v][axis] = load(rays.step[axis] + at);
      stride[v][axis] = load(rays.stride[axis] + at);
    }
    t[v] = load(rays.t + at);
    key[v] = load(rays.key + at);
    seek_pred[v] = seek_target[v] = load(rays.under_way + at);
    pred_exit[v] = target_exit[v] = t[v];
    pred_key[v] = target_key[v] = Integers{};
  }
  int64_t going = -1;
  while (going) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      OCC_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const Reals x = (face[v][0] - origin[v][0]) * inverse[v][0];
        const Reals y = (face[v][1] - origin[v][1]) * inverse[v][1];
        const Reals z = (face[v][2] - origin[v][2]) * inverse[v][2];
        const Integers x_first = x < y;
        const Reals nearer = choose(x_first, x, y);
        const Integers along_xy = nearer < z;
        const Reals leave = choose(along_xy, nearer, z);
        t[v] = choose(leave > t[v], leave, t[v]);

        const Integers height = key[v] & ((int64_t{1} << kKeyShift) - 1);
        const Integers index = (key[v] >> kKeyShift) + (height >> 5);
        Integers cell;
        for (int lane = 0; lane < kWidth; ++lane) cell[lane] = static_cast<int64_t>(words[index[lane]]);
        cell >>= height & 31;  // the sign that comes in from the left is not looked at
        const Integers pred_hit = seek_pred[v] & -(cell & 1);
        const Integers target_hit = seek_target[v] & -((cell >> 32) & 1);
        pred_exit[v] = choose(pred_hit, t[v], pred_exit[v]);
        target_exit[v] = choose(target_hit, t[v], target_exit[v]);
        pred_key[v] = (pred_hit & key[v]) | (~pred_hit & pred_key[v]);
        target_key[v] = (target_hit & key[v]) | (~target_hit & target_key[v]);
        seek_pred[v] &= ~pred_hit;
        seek_target[v] &= ~target_hit;

        const Integers walks = seek_pred[v] | seek_target[v];
        const Integers by_x = walks & along_xy & x_first, by_y = walks & along_xy & ~x_first, by_z = walks & ~along_xy;
        face[v][0] += reinterpret_cast<Reals>(by_x & reinterpret_cast<Integers>(step[v][0]));
        face[v][1] += reinterpret_cast<Reals>(by_y & reinterpret_cast<Integers>(step[v][1]));
        face[v][2] += reinterpret_cast<Reals>(by_z & reinterpret_cast<Integers>(step[v][2]));
        key[v] += (by_x & stride[v][0]) | (by_y & stride[v][1]) | (by_z & stride[v][2]);
      }
    }
    Integers any = Integers{};
    for (int v = 0; v < kVectors; ++v) any |= seek_pred[v] | seek_target[v];
    going = any[0] | any[1] | any[2] | any[3];
  }
  for (int v = 0; v < kVectors; ++v) {
    std::memcpy(rays.pred_exit + v * kWidth, &pred_exit[v], sizeof pred_exit[v]);
    std::memcpy(rays.target_exit + v * kWidth, &target_exit[v], sizeof target_exit[v]);
    std::memcpy(rays.pred_key + v * kWidth, &pred_key[v], sizeof pred_key[v]);
    std::memcpy(rays.target_key + v * kWidth, &target_key[v], sizeof target_key[v]);
  }
}

at::Tensor ray_counts_cpu(const at::Tensor& pred_, const at::Tensor& target_, const at::Tensor& ring_,
                          const at::Tensor& origins_, const at::Tensor& directions_, at::ArrayRef<double> lower,
                          at::ArrayRef<double> voxel_size, int64_t free, int64_t num_classes, int64_t rings,
                          at::ArrayRef<double> thresholds) {
  const RayCountFrame frame = check_ray_counts(pred_, target_, ring_, origins_, directions_, lower, voxel_size, free,
                                               num_classes, rings, thresholds);
  TORCH_CHECK_VALUE(frame.grid.size[2] + 2 < (int64_t{1} << kKeyShift), "grid is too high: ", target_.sizes());
  const at::Tensor pred_tensor = pred_.contiguous(), target_tensor = target_.contiguous();
  const at::Tensor ring_tensor = ring_.contiguous();
  const at::Tensor origins_tensor = origins_.contiguous(), directions_tensor = directions_.contiguous();
  const uint8_t *pred = pred_tensor.const_data_ptr<uint8_t>(), *target = target_tensor.const_data_ptr<uint8_t>();
  const uint8_t* ring = ring_tensor.const_data_ptr<uint8_t>();
  const double* origins = origins_tensor.const_data_ptr<double>();
  const double* directions = directions_tensor.const_data_ptr<double>();
  const int64_t rays = directions_.size(0), groups = (rays + kLanes - 1) / kLanes, total = origins_.size(0) * groups;
  at::Tensor counts = at::zeros({rings, frame.columns(), num_classes}, target_.options().dtype(at::kLong));
  if (target_.numel() == 0 || total == 0) return counts;

  BitGrid grid(frame.grid);
  fill(frame.grid, pred, target, frame.free, grid);
  // more parts than threads, since some rays are far longer than others
  const int64_t parts = std::min<int64_t>(total, 8 * at::get_num_threads());
  std::vector<int64_t> sums(static_cast<size_t>(parts * frame.counters()), 0);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    Rays group;
    const int64_t *y_size = &frame.grid.size[1], *z_size = &frame.grid.size[2];
    for (int64_t part = first; part < last; ++part) {
      int64_t* sum = sums.data() + part * frame.counters();
      const auto add = [sum](int32_t at) { ++sum[at]; };
      for (int64_t g = total * part / parts; g < total * (part + 1) / parts; ++g) {
        const double* origin = origins + 3 * (g / groups);
        const int64_t begin = g % groups * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) {
          Walk walk;
          if (begin + lane < rays && start_walk(frame.grid, origin, directions + 3 * (begin + lane), 0.0,
                                                std::numeric_limits<double>::infinity(), walk) == Start::kInside) {
            group.set(lane, walk, grid);
          } else {
            group.clear(lane);
          }
        }
        march(grid.bits.data(), group);
        for (int lane = 0; lane < kLanes; ++lane) {
          int64_t cell[3];
          if (!grid.cell(group.target_key[lane], cell)) continue;
          const int64_t column = cell[0] * *y_size + cell[1];
          const uint8_t true_label = target[column * *z_size + cell[2]];
          const bool found = grid.cell(group.pred_key[lane], cell);
          const uint8_t label = found ? pred[(cell[0] * *y_size + cell[1]) * *z_size + cell[2]] : frame.free;
          count_ray(frame, ring[column], label, group.pred_exit[lane], true_label, group.target_exit[lane], add);
        }
      }
    }
  });
  auto* out = counts.data_ptr<int64_t>();
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < frame.counters(); ++i) out[i] += sums[part * frame.counters() + i];
  }
  return counts;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) { m.impl("ray_counts", &ray_counts_cpu); }

}  // namespace occforge
