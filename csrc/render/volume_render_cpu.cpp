// Volume rendering on the CPU: threads share out the rays, vector lanes the samples of a ray (density) and the channels
// (semantics). Samples of a ray that fall into the same eight cells are merged into one "run", so that every row of
// semantics is read, and every row of its gradient written, once a run.
//
// The gradients of the grids are formed in two steps over blocks of rays. First each ray's runs are written down, with
// the factors that its eight corners get; then every thread goes through the runs of the whole block, in the order of
// the rays, and adds what belongs to the columns of cells that it owns. Every cell thus gets its terms in the order of
// the rays whatever the number of threads: the result is the same to the last bit.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "render/volume_render_check.h"

namespace occforge {
namespace {

constexpr int kBlock = 32;         // samples marched at once
constexpr int64_t kRayGrain = 16;  // rays a thread takes at least
constexpr int64_t kRaysPerThread = 64;
constexpr int64_t kAhead = 6;  // runs by which memory is fetched before it is used

// 32 bytes of neighbouring channels
template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(32), aligned(alignof(T)), may_alias));
  static constexpr int kCount = 32 / sizeof(T);
};

template <typename T>
OCC_HD const typename Lanes<T>::Vector& load(const T* from) {
  return *reinterpret_cast<const typename Lanes<T>::Vector*>(from);
}

// The eight rows of a run lie in four places; which come next is known long before they are needed.
template <bool kWrite, typename T>
OCC_HD void prefetch_rows(const T* rows, const GridShape<T>& shape, int32_t cell) {
  const int64_t bytes = std::min<int64_t>(2 * shape.channels * static_cast<int64_t>(sizeof(T)), 256);
  for (int k = 0; k < 8; k += 2) {
    const char* const from =
        reinterpret_cast<const char*>(rows + (static_cast<int64_t>(cell) + shape.corner[k]) * shape.channels);
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, kWrite, 3);
  }
}

template <typename T>
struct Grids {
  GridShape<T> shape;
  const T *density, *semantics;
  RenderOptions<T> options;
};

// What is kept of the samples of the ray in work.
template <typename T>
struct March {
  std::vector<T> numbers;
  std::vector<int32_t> cells;
  T *t, *alpha, *slope, *weight, *left, *grad;  // left: transmittance behind the sample
  T *low[3], *high[3];
  int32_t *cell, *x, *y;

  void reserve(int64_t count) {
    const int64_t size = (count + kBlock - 1) / kBlock * kBlock;
    if (static_cast<int64_t>(cells.size()) < 3 * size) {
      numbers.resize(12 * size);
      cells.resize(3 * size);
    }
    T* at = numbers.data();
    for (T** array :
         {&t, &alpha, &slope, &weight, &left, &grad, &low[0], &low[1], &low[2], &high[0], &high[1], &high[2]}) {
      *array = at;
      at += size;
    }
    cell = cells.data();
    x = cell + size;
    y = x + size;
  }
};

// Samples until the ray ends or is stopped: their number. The loops over a block have a constant length and no branch;
// what they compute for samples behind the last one is not used.
template <typename T, typename Row>
OCC_HD int64_t march_ray(const Grids<T>& g, const Row& row, March<T>& m, T& transmittance) {
  const GridShape<T>& shape = g.shape;
  const T* const density = g.density + row.grid * shape.cells;
  const int32_t stride_x = shape.stride[0], stride_y = shape.stride[1];
  const int32_t c1 = shape.corner[1], c2 = shape.corner[2], c3 = shape.corner[3], c4 = shape.corner[4],
                c5 = shape.corner[5], c6 = shape.corner[6], c7 = shape.corner[7];
  const T shift = g.options.shift, stop = g.options.stop;
  transmittance = 1;
  for (int64_t begin = 0; begin < row.count; begin += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, row.count - begin);
    T t[kBlock], place[3][kBlock], beta[kBlock], value[kBlock], low[3][kBlock], high[3][kBlock];
    int32_t cell[3][kBlock], at[kBlock];
    if (count < kBlock) {
      for (int k = 0; k < kBlock; ++k) t[k] = place[0][k] = place[1][k] = place[2][k] = beta[k] = 0;
    }
    for (int64_t k = 0; k < count; ++k) t[k] = row.t(begin + k);
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t k = 0; k < count; ++k) place[axis][k] = row.place(begin + k, t[k], axis);
      const T last = shape.last[axis], next = shape.next[axis];
      for (int k = 0; k < kBlock; ++k) {
        const Tent<T> tent = tent_of(place[axis][k], last, next);
        cell[axis][k] = tent.cell;
        low[axis][k] = tent.low;
        high[axis][k] = tent.high;
      }
    }
    for (int64_t k = 0; k < count; ++k) beta[k] = row.interval(begin + k);
    for (int k = 0; k < kBlock; ++k) at[k] = cell[0][k] * stride_x + cell[1][k] * stride_y + cell[2][k];
    for (int k = 0; k < kBlock; ++k) {
      const T* const from = density + at[k];
      const T a = low[2][k], b = high[2][k];
      value[k] = low[0][k] * (low[1][k] * (a * from[0] + b * from[c1]) + high[1][k] * (a * from[c2] + b * from[c3])) +
                 high[0][k] * (low[1][k] * (a * from[c4] + b * from[c5]) + high[1][k] * (a * from[c6] + b * from[c7]));
    }
    for (int k = 0; k < kBlock; ++k) {
      const Opacity<T> found = opacity_of(value[k], shift, beta[k]);
      m.alpha[begin + k] = found.alpha;
      m.slope[begin + k] = found.slope;
    }
    std::memcpy(m.t + begin, t, sizeof(t));
    std::memcpy(m.cell + begin, at, sizeof(at));
    std::memcpy(m.x + begin, cell[0], sizeof(at));
    std::memcpy(m.y + begin, cell[1], sizeof(at));
    for (int axis = 0; axis < 3; ++axis) {
      std::memcpy(m.low[axis] + begin, low[axis], sizeof(t));
      std::memcpy(m.high[axis] + begin, high[axis], sizeof(t));
    }
    for (int64_t i = begin; i < begin + count; ++i) {
      m.weight[i] = transmittance * m.alpha[i];
      m.left[i] = transmittance *= 1 - m.alpha[i];
      if (transmittance < stop) return i + 1;
    }
  }
  return row.count;
}

// Factors of the eight corners of sample i.
template <typename T>
OCC_HD void corner_factors(const March<T>& m, int64_t i, T* factor) {
  const T yz[4] = {m.low[1][i] * m.low[2][i], m.low[1][i] * m.high[2][i], m.high[1][i] * m.low[2][i],
                   m.high[1][i] * m.high[2][i]};
  for (int k = 0; k < 4; ++k) factor[k] = m.low[0][i] * yz[k];
  for (int k = 0; k < 4; ++k) factor[k + 4] = m.high[0][i] * yz[k];
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward

template <typename T>
struct Run {
  int32_t cell;
  T factor[8];
};

// NV vectors of channels from `channel` on, the last of them `tail` behind the first (it may overlap the one before).
template <int NV, typename T>
OCC_HD void sum_runs(const Grids<T>& g, const T* semantics, int64_t channel, int64_t tail, const Run<T>* runs,
                     int64_t count, T* out) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  V even[NV] = {}, odd[NV] = {};
  for (int64_t r = 0; r < count; ++r) {
    if (r + kAhead < count) prefetch_rows<false>(semantics + channel, g.shape, runs[r + kAhead].cell);
    OCC_UNROLL
    for (int k = 0; k < 8; ++k) {
      const T* const row =
          semantics + (static_cast<int64_t>(runs[r].cell) + g.shape.corner[k]) * g.shape.channels + channel;
      const T factor = runs[r].factor[k];
      OCC_UNROLL
      for (int v = 0; v < NV; ++v) {
        const V values = load(row + (v + 1 < NV ? v * L : tail));
        if (k % 2 == 0) {
          even[v] += factor * values;
        } else {
          odd[v] += factor * values;
        }
      }
    }
  }
  for (int v = 0; v < NV; ++v) {
    const V sum = even[v] + odd[v];
    std::memcpy(out + channel + (v + 1 < NV ? v * L : tail), &sum, sizeof(sum));
  }
}

template <typename T>
OCC_HD void sum_runs_scalar(const Grids<T>& g, const T* semantics, const Run<T>* runs, int64_t count, T* out) {
  const int64_t channels = g.shape.channels;
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t r = 0; r < count; ++r) {
    for (int k = 0; k < 8; ++k) {
      const T* const row = semantics + (static_cast<int64_t>(runs[r].cell) + g.shape.corner[k]) * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] += runs[r].factor[k] * row[c];
    }
  }
}

// Calls call(NV as a constant, first channel, tail) until all channels are covered by vectors; there are at least as
// many channels as lanes.
template <typename T, typename Call>
OCC_HD void for_channels(int64_t channels, const Call& call) {
  constexpr int64_t L = Lanes<T>::kCount;
  int64_t c = 0;
  for (; channels - c > 4 * L; c += 4 * L) call(std::integral_constant<int, 4>(), c, 3 * L);
  const int64_t rest = channels - c;  // 1..4 vectors, the last one moved back where it would reach too far
  if (rest > 3 * L) {
    call(std::integral_constant<int, 4>(), c, rest - L);
  } else if (rest > 2 * L) {
    call(std::integral_constant<int, 3>(), c, rest - L);
  } else if (rest > L) {
    call(std::integral_constant<int, 2>(), c, rest - L);
  } else {
    call(std::integral_constant<int, 1>(), c, rest - L);
  }
}

template <typename T>
struct Forward {
  March<T> march;
  std::vector<Run<T>> runs;
};

template <typename T, typename Rays>
OCC_HD void render_rays(const Grids<T>& g, const Rays& rays, int64_t begin, int64_t end, Forward<T>& work,
                        const RayPointers<T>& out) {
  March<T>& m = work.march;
  const int64_t channels = g.shape.channels;
  for (int64_t r = begin; r < end; ++r) {
    const auto row = rays.row(r, g.shape.grids);
    m.reserve(row.count);
    const int64_t count = march_ray(g, row, m, out.transmittance[r]);
    T depth = 0, mass = 0, moment = 0, pairs = 0, self = 0;
    for (int64_t i = 0; i < count; ++i) {
      const T w = m.weight[i], t = m.t[i];
      pairs += w * (t * mass - moment);
      self += w * w * row.width(i);
      mass += w;
      moment += w * t;
    }
    depth = moment;
    out.depth[r] = depth;
    out.distortion[r] = 2 * pairs + self / 3;

    if (static_cast<int64_t>(work.runs.size()) < count) work.runs.resize(count);
    Run<T>* const runs = work.runs.data();
    int64_t filled = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!(m.weight[i] > g.options.min_weight)) continue;
      T factor[8];
      corner_factors(m, i, factor);
      const bool merged = filled > 0 && runs[filled - 1].cell == m.cell[i];
      if (!merged) runs[filled++] = {m.cell[i], {}};
      Run<T>& run = runs[filled - 1];
      for (int k = 0; k < 8; ++k) run.factor[k] += m.weight[i] * factor[k];
    }
    T* const sums = out.semantics + r * channels;
    const T* const semantics = g.semantics + row.grid * g.shape.cells * channels;
    if (channels < Lanes<T>::kCount) {
      sum_runs_scalar(g, semantics, runs, filled, sums);
    } else {
      for_channels<T>(
          channels, [&](auto vectors, int64_t channel, int64_t tail) __attribute__((always_inline)) {
            sum_runs<decltype(vectors)::value>(g, semantics, channel, tail, runs, filled, sums);
          });
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward

// What one run adds to its eight corners: `density` to the gradient of the density, `semantics` times the ray's
// upstream gradient to that of the semantics. `owner` is the part that owns each of the four columns along z.
template <typename T>
struct Record {
  int32_t cell;
  uint8_t owner[4];
  T density[8], semantics[8];
};

constexpr int64_t kMostParts = 256;

// Columns belong to parts by squares of 4 x 4, scattered so that each part gets as much of any view.
OCC_HD uint8_t owner_of(uint32_t x, uint32_t y, uint32_t parts) {
  const uint32_t mixed = mix_bits((x >> 2) * 0x9e3779b9u ^ (y >> 2) * 0x85ebca6bu);
  return static_cast<uint8_t>((static_cast<uint64_t>(mixed) * parts) >> 32);
}

// < upstream, interpolated semantics of one sample >
template <int NV, typename T>
OCC_HD T dot_sample(const Grids<T>& g, const T* row, int64_t tail, const T* factor, const T* upstream) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  V even[NV] = {}, odd[NV] = {};
  OCC_UNROLL
  for (int k = 0; k < 8; ++k) {
    const T* const from = row + static_cast<int64_t>(g.shape.corner[k]) * g.shape.channels;
    OCC_UNROLL
    for (int v = 0; v < NV; ++v) {
      const V values = load(from + (v + 1 < NV ? v * L : tail));
      if (k % 2 == 0) {
        even[v] += factor[k] * values;
      } else {
        odd[v] += factor[k] * values;
      }
    }
  }
  V products = {};
  for (int v = 0; v < NV; ++v) products += (even[v] + odd[v]) * load(upstream + v * L);
  T sum = 0;
  OCC_UNROLL
  for (int l = 0; l < L; ++l) sum += products[l];
  return sum;
}

template <typename T, typename Rays>
OCC_HD void record_rays(const Grids<T>& g, const Rays& rays, int64_t begin, int64_t end, uint32_t parts, March<T>& m,
                        const RayPointers<const T>& grad, std::vector<Record<T>>* records, int64_t* grids) {
  constexpr int L = Lanes<T>::kCount;
  const int64_t channels = g.shape.channels;
  for (int64_t r = begin; r < end; ++r) {
    const auto row = rays.row(r, g.shape.grids);
    m.reserve(row.count);
    T transmittance;
    const int64_t count = march_ray(g, row, m, transmittance);
    const T grad_depth = grad.depth[r], grad_distortion = grad.distortion[r];
    const T* const upstream = grad.semantics + r * channels;
    const T* const semantics = g.semantics + row.grid * g.shape.cells * channels;
    *grids++ = row.grid;

    for (int64_t i = 0; i < count; ++i) m.grad[i] = grad_depth * m.t[i];
    if (grad_distortion != 0) {
      T mass = 0, moment = 0, front = 0, front_moment = 0;
      for (int64_t i = 0; i < count; ++i) {
        mass += m.weight[i];
        moment += m.weight[i] * m.t[i];
      }
      for (int64_t i = 0; i < count; ++i) {
        const T w = m.weight[i], t = m.t[i];
        const T back = mass - front - w, back_moment = moment - front_moment - w * t;
        const T apart = t * (front - back) + back_moment - front_moment;
        m.grad[i] += grad_distortion * (2 * apart + T(2.0 / 3.0) * w * row.width(i));
        front += w;
        front_moment += w * t;
      }
    }
    bool any = false;
    for (int64_t c = 0; c < channels; ++c) any |= upstream[c] != 0;
    if (any && channels < L) {
      for (int64_t i = 0; i < count; ++i) {
        if (!(m.weight[i] > g.options.min_weight)) continue;
        T factor[8];
        corner_factors(m, i, factor);
        for (int k = 0; k < 8; ++k) {
          const T* const from = semantics + (static_cast<int64_t>(m.cell[i]) + g.shape.corner[k]) * channels;
          T sum = 0;
          for (int64_t c = 0; c < channels; ++c) sum += upstream[c] * from[c];
          m.grad[i] += factor[k] * sum;
        }
      }
    } else if (any) {
      for_channels<T>(
          channels, [&](auto vectors, int64_t channel, int64_t tail) __attribute__((always_inline)) {
            constexpr int NV = decltype(vectors)::value;
            T padded[NV * L] = {};  // the last vector without the channels of the one before
            for (int c = 0; c < (NV - 1) * L; ++c) padded[c] = upstream[channel + c];
            for (int64_t c = std::max<int64_t>(tail, (NV - 1) * L); c < tail + L; ++c) {
              padded[(NV - 1) * L + c - tail] = upstream[channel + c];
            }
            for (int64_t i = 0; i < count; ++i) {
              if (!(m.weight[i] > g.options.min_weight)) continue;
              T factor[8];
              corner_factors(m, i, factor);
              const T* const from = semantics + static_cast<int64_t>(m.cell[i]) * channels + channel;
              m.grad[i] += dot_sample<NV>(g, from, tail, factor, padded);
            }
          });
    }

    // From the gradient of the weights to that of the density, back to front; kept in `grad`.
    T behind = grad.transmittance[r];
    for (int64_t i = count - 1; i >= 0; --i) {
      const T value = m.grad[i], a = m.alpha[i];
      m.grad[i] = m.slope[i] * m.left[i] * (value - behind);
      behind = a * value + (1 - a) * behind;
    }

    std::vector<Record<T>>& list = *records++;
    list.clear();
    for (int64_t i = 0; i < count; ++i) {
      if (list.empty() || list.back().cell != m.cell[i]) {
        list.emplace_back();
        Record<T>& record = list.back();
        record.cell = m.cell[i];
        for (int k = 0; k < 4; ++k) {
          const uint32_t x = m.x[i] + (k / 2) * (g.shape.size[0] > 1), y = m.y[i] + (k % 2) * (g.shape.size[1] > 1);
          record.owner[k] = owner_of(x, y, parts);
        }
        for (int k = 0; k < 8; ++k) record.density[k] = record.semantics[k] = 0;
      }
      Record<T>& record = list.back();
      const T weight = any && m.weight[i] > g.options.min_weight ? m.weight[i] : T(0);
      T factor[8];
      corner_factors(m, i, factor);
      for (int k = 0; k < 8; ++k) record.density[k] += m.grad[i] * factor[k];
      for (int k = 0; k < 8; ++k) record.semantics[k] += weight * factor[k];
    }
  }
}

// Adds one column's two rows; channels behind the last full vector one at a time.
template <int NV, typename T>
OCC_HD void add_rows(const Record<T>& record, int column, const int32_t* corner, int64_t channels, int64_t channel,
                     int64_t scalars, const typename Lanes<T>::Vector* upstream, const T* upstream_scalars, T* grad) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  for (int z = 0; z < 2; ++z) {
    const T factor = record.semantics[2 * column + z];
    T* const row = grad + (static_cast<int64_t>(record.cell) + corner[2 * column + z]) * channels + channel;
    OCC_UNROLL
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(row + v * L) += factor * upstream[v];
    for (int64_t c = 0; c < scalars; ++c) row[NV * L + c] += factor * upstream_scalars[c];
  }
}

// NV vectors and `scalars` single channels, from `channel` on, of one ray's runs; the density with the first channels.
template <int NV, typename T>
OCC_HD void add_records(const GridShape<T>& shape, const std::vector<Record<T>>& records, uint8_t first, uint8_t last,
                        int64_t channel, int64_t scalars, bool any, const T* upstream, T* grad_density,
                        T* grad_semantics) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  V vectors[NV > 0 ? NV : 1];
  for (int v = 0; v < NV; ++v) vectors[v] = load(upstream + channel + v * L);
  for (size_t i = 0; i < records.size(); ++i) {
    const Record<T>& record = records[i];
    if (any && i + kAhead < records.size()) {
      const Record<T>& ahead = records[i + kAhead];
      if (ahead.owner[0] >= first && ahead.owner[0] <= last) {
        prefetch_rows<true>(grad_semantics + channel, shape, ahead.cell);
      }
    }
    for (int column = 0; column < 4; ++column) {
      if (record.owner[column] < first || record.owner[column] > last) continue;
      if (channel == 0) {
        T* const from = grad_density + record.cell;
        from[shape.corner[2 * column]] += record.density[2 * column];
        from[shape.corner[2 * column + 1]] += record.density[2 * column + 1];
      }
      if (any) {
        add_rows<NV>(record, column, shape.corner, shape.channels, channel, scalars, vectors,
                     upstream + channel + NV * L, grad_semantics);
      }
    }
  }
}

template <typename T>
OCC_HD void add_rays(const GridShape<T>& shape, const std::vector<Record<T>>* records, const int64_t* grids,
                     int64_t rays, uint8_t first, uint8_t last, const T* upstream, T* grad_density, T* grad_semantics) {
  constexpr int64_t L = Lanes<T>::kCount;
  const int64_t channels = shape.channels;
  for (int64_t r = 0; r < rays; ++r, upstream += channels) {
    T* const density = grad_density + grids[r] * shape.cells;
    T* const semantics = grad_semantics + grids[r] * shape.cells * channels;
    bool any = false;
    for (int64_t c = 0; c < channels; ++c) any |= upstream[c] != 0;
    int64_t c = 0;
    do {
      const int64_t rest = channels - c, vectors = std::min<int64_t>(rest / L, 4);
      const int64_t scalars = rest - vectors * L < L ? rest - vectors * L : 0;
      switch (vectors) {
        case 4:
          add_records<4>(shape, records[r], first, last, c, scalars, any, upstream, density, semantics);
          break;
        case 3:
          add_records<3>(shape, records[r], first, last, c, scalars, any, upstream, density, semantics);
          break;
        case 2:
          add_records<2>(shape, records[r], first, last, c, scalars, any, upstream, density, semantics);
          break;
        case 1:
          add_records<1>(shape, records[r], first, last, c, scalars, any, upstream, density, semantics);
          break;
        default:
          add_records<0>(shape, records[r], first, last, c, scalars, any, upstream, density, semantics);
      }
      c += vectors * L + scalars;
    } while (c < channels && any);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// One copy of the loops for each kind of rays and precision

#define OCC_RENDER_COPIES(T, Rays)                                                                                  \
  OCC_CLONES void run_forward(const Grids<T>& g, const Rays<T>& rays, int64_t begin, int64_t end, Forward<T>& work, \
                              const RayPointers<T>& out) {                                                          \
    render_rays(g, rays, begin, end, work, out);                                                                    \
  }                                                                                                                 \
  OCC_CLONES void run_record(const Grids<T>& g, const Rays<T>& rays, int64_t begin, int64_t end, uint32_t parts,    \
                             March<T>& march, const RayPointers<const T>& grad, std::vector<Record<T>>* records,    \
                             int64_t* grids) {                                                                      \
    record_rays(g, rays, begin, end, parts, march, grad, records, grids);                                           \
  }
OCC_RENDER_COPIES(float, RegularRays)
OCC_RENDER_COPIES(double, RegularRays)
OCC_RENDER_COPIES(float, PackedRays)
OCC_RENDER_COPIES(double, PackedRays)
#undef OCC_RENDER_COPIES

OCC_CLONES void run_add(const GridShape<float>& shape, const std::vector<Record<float>>* records, const int64_t* grids,
                        int64_t rays, uint8_t first, uint8_t last, const float* upstream, float* grad_density,
                        float* grad_semantics) {
  add_rays(shape, records, grids, rays, first, last, upstream, grad_density, grad_semantics);
}
OCC_CLONES void run_add(const GridShape<double>& shape, const std::vector<Record<double>>* records,
                        const int64_t* grids, int64_t rays, uint8_t first, uint8_t last, const double* upstream,
                        double* grad_density, double* grad_semantics) {
  add_rays(shape, records, grids, rays, first, last, upstream, grad_density, grad_semantics);
}

// ---------------------------------------------------------------------------------------------------------------------
// The operators

using RayOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using GridOutputs = std::tuple<at::Tensor, at::Tensor>;

void check_numbers(const RayTensors& tensors, int64_t grids) {
  if (!tensors.grid_index.has_value()) return;
  const int64_t* index = numbers(tensors.grid_index);
  for (int64_t r = 0; r < tensors.rays; ++r) {
    TORCH_CHECK_VALUE(index[r] >= 0 && index[r] < grids, "grid_index must be in 0..", grids - 1, ", found ", index[r],
                      " for ray ", r);
  }
}

void check_span(const RayTensors& tensors) {
  const auto* offset = tensors.offset.const_data_ptr<int64_t>();
  const int64_t samples = tensors.b.size(0);
  bool good = offset[0] == 0 && offset[tensors.rays] == samples;
  for (int64_t r = 0; r < tensors.rays; ++r) good &= offset[r] <= offset[r + 1];
  TORCH_CHECK_VALUE(good, "offset must ascend from 0 to the number of samples, ", samples);
}

template <typename T>
Grids<T> grids_of(const at::Tensor& density, const at::Tensor& semantics, const RenderOptions<double>& options) {
  return {GridShape<T>(density.size(0), density.size(1), density.size(2), density.size(3), semantics.size(4)),
          density.const_data_ptr<T>(),
          semantics.const_data_ptr<T>(),
          {static_cast<T>(options.shift), static_cast<T>(options.stop), static_cast<T>(options.min_weight)}};
}

template <typename T, typename Rays>
void forward(const Grids<T>& g, const Rays& rays, int64_t count, const RayPointers<T>& out) {
  at::parallel_for(0, count, kRayGrain, [&](int64_t begin, int64_t end) {
    Forward<T> work;
    run_forward(g, rays, begin, end, work, out);
  });
}

template <typename T, typename Rays>
void backward(const Grids<T>& g, const Rays& rays, int64_t count, const RayPointers<const T>& grad, T* grad_density,
              T* grad_semantics) {
  const int64_t parts = std::min<int64_t>(at::get_num_threads(), kMostParts), block = kRaysPerThread * parts;
  std::vector<std::vector<Record<T>>> records(std::min(block, count));
  std::vector<int64_t> grids(records.size());
  std::vector<March<T>> marches(parts);
  for (int64_t first = 0; first < count; first += block) {
    const int64_t size = std::min(block, count - first), slice = (size + 4 * parts - 1) / (4 * parts);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        // Slices dealt out in turn: neighbouring rays cost alike.
        for (int64_t k = part; k * slice < size; k += parts) {
          const int64_t from = k * slice, to = std::min(from + slice, size);
          run_record(g, rays, first + from, first + to, static_cast<uint32_t>(parts), marches[part], grad,
                     records.data() + from, grids.data() + from);
        }
      }
    });
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      run_add(g.shape, records.data(), grids.data(), size, static_cast<uint8_t>(begin), static_cast<uint8_t>(end - 1),
              grad.semantics + first * g.shape.channels, grad_density, grad_semantics);
    });
  }
}

RayValues empty_values(const at::Tensor& semantics, int64_t rays) {
  return {at::empty({rays}, semantics.options()), at::empty({rays, semantics.size(4)}, semantics.options()),
          at::empty({rays}, semantics.options()), at::empty({rays}, semantics.options())};
}

RayOutputs volume_render_cpu(const at::Tensor& density_, const at::Tensor& semantics_, const at::Tensor& origins,
                             const at::Tensor& directions, const std::optional<at::Tensor>& grid_index,
                             const std::optional<at::Tensor>& seed, at::ArrayRef<double> lower,
                             at::ArrayRef<double> voxel_size, double near, double far, double step, int64_t count,
                             double position, double unit, double shift, double stop, double min_weight) {
  const RegularArguments arguments{lower, voxel_size, near, far, step, count, position, unit};
  const RayTensors tensors = check_regular(density_, semantics_, origins, directions, grid_index, seed, arguments);
  check_numbers(tensors, density_.size(0));
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  const RayValues out = empty_values(semantics, tensors.rays);
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render", [&] {
    forward(grids_of<scalar_t>(density, semantics, {shift, stop, min_weight}),
            regular_rays<scalar_t>(tensors, density, arguments), tensors.rays, pointers<scalar_t>(out));
  });
  return {out.depth, out.semantics, out.transmittance, out.distortion};
}

GridOutputs volume_render_backward_cpu(
    const at::Tensor& grad_depth, const at::Tensor& grad_semantics, const at::Tensor& grad_transmittance,
    const at::Tensor& grad_distortion, const at::Tensor& depth, const at::Tensor& rendered,
    const at::Tensor& transmittance, const at::Tensor& distortion, const at::Tensor& density_,
    const at::Tensor& semantics_, const at::Tensor& origins, const at::Tensor& directions,
    const std::optional<at::Tensor>& grid_index, const std::optional<at::Tensor>& seed, at::ArrayRef<double> lower,
    at::ArrayRef<double> voxel_size, double near, double far, double step, int64_t count, double position, double unit,
    double shift, double stop, double min_weight) {
  const RegularArguments arguments{lower, voxel_size, near, far, step, count, position, unit};
  const RayTensors tensors = check_regular(density_, semantics_, origins, directions, grid_index, seed, arguments);
  check_numbers(tensors, density_.size(0));
  const RayValues grad = check_ray_values("grad", grad_depth, grad_semantics, grad_transmittance, grad_distortion,
                                          tensors.rays, semantics_);
  check_ray_values("output", depth, rendered, transmittance, distortion, tensors.rays, semantics_);
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  at::Tensor density_out = at::zeros(density.sizes(), density.options());
  at::Tensor semantics_out = at::zeros(semantics.sizes(), semantics.options());
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render_backward", [&] {
    backward(grids_of<scalar_t>(density, semantics, {shift, stop, min_weight}),
             regular_rays<scalar_t>(tensors, density, arguments), tensors.rays, const_pointers<scalar_t>(grad),
             density_out.data_ptr<scalar_t>(), semantics_out.data_ptr<scalar_t>());
  });
  return {density_out, semantics_out};
}

RayOutputs volume_render_samples_cpu(const at::Tensor& density_, const at::Tensor& semantics_, const at::Tensor& points,
                                     const at::Tensor& t, const at::Tensor& interval, const at::Tensor& width,
                                     const at::Tensor& offset, const std::optional<at::Tensor>& grid_index,
                                     double shift, double stop, double min_weight) {
  const RayTensors tensors = check_placed(density_, semantics_, points, t, interval, width, offset, grid_index);
  check_numbers(tensors, density_.size(0));
  check_span(tensors);
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  const RayValues out = empty_values(semantics, tensors.rays);
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render_samples", [&] {
    forward(grids_of<scalar_t>(density, semantics, {shift, stop, min_weight}), packed_rays<scalar_t>(tensors),
            tensors.rays, pointers<scalar_t>(out));
  });
  return {out.depth, out.semantics, out.transmittance, out.distortion};
}

GridOutputs volume_render_samples_backward_cpu(const at::Tensor& grad_depth, const at::Tensor& grad_semantics,
                                               const at::Tensor& grad_transmittance, const at::Tensor& grad_distortion,
                                               const at::Tensor& depth, const at::Tensor& rendered,
                                               const at::Tensor& transmittance, const at::Tensor& distortion,
                                               const at::Tensor& density_, const at::Tensor& semantics_,
                                               const at::Tensor& points, const at::Tensor& t,
                                               const at::Tensor& interval, const at::Tensor& width,
                                               const at::Tensor& offset, const std::optional<at::Tensor>& grid_index,
                                               double shift, double stop, double min_weight) {
  const RayTensors tensors = check_placed(density_, semantics_, points, t, interval, width, offset, grid_index);
  check_numbers(tensors, density_.size(0));
  check_span(tensors);
  const RayValues grad = check_ray_values("grad", grad_depth, grad_semantics, grad_transmittance, grad_distortion,
                                          tensors.rays, semantics_);
  check_ray_values("output", depth, rendered, transmittance, distortion, tensors.rays, semantics_);
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  at::Tensor density_out = at::zeros(density.sizes(), density.options());
  at::Tensor semantics_out = at::zeros(semantics.sizes(), semantics.options());
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render_samples_backward", [&] {
    backward(grids_of<scalar_t>(density, semantics, {shift, stop, min_weight}), packed_rays<scalar_t>(tensors),
             tensors.rays, const_pointers<scalar_t>(grad), density_out.data_ptr<scalar_t>(),
             semantics_out.data_ptr<scalar_t>());
  });
  return {density_out, semantics_out};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("volume_render", &volume_render_cpu);
  m.impl("volume_render_backward", &volume_render_backward_cpu);
  m.impl("volume_render_samples", &volume_render_samples_cpu);
  m.impl("volume_render_samples_backward", &volume_render_samples_backward_cpu);
}

}  // namespace occforge
