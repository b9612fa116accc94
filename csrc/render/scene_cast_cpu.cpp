// Ray casting of analytic solids: building the tree, and casting on the CPU.
// Walking a tree goes by branches that are mostly foretold; without traps the compiler makes choices of them, and every
// step waits for all of its numbers (GCC 12: 1.45 times as long).
#pragma GCC optimize("trapping-math")
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include "scene_cast_check.h"

namespace occforge {
namespace {

using scene::kStride;

struct Bounds {
  std::array<double, 3> lo{1e300, 1e300, 1e300}, hi{-1e300, -1e300, -1e300};
  void add(const Bounds& other) {
    for (int k = 0; k < 3; ++k) {
      lo[k] = std::min(lo[k], other.lo[k]);
      hi[k] = std::max(hi[k], other.hi[k]);
    }
  }
  double area() const {
    const double x = hi[0] - lo[0], y = hi[1] - lo[1], z = hi[2] - lo[2];
    return x < 0 ? 0 : x * y + y * z + z * x;
  }
};

Bounds primitive_bounds(const double* p) {
  double half[3] = {p[13], p[14], p[15]}, lower_x = -p[13], upper_x = p[13];
  if (p[0] == 0) {
    const double reach = p[13] * p[16];
    lower_x = std::min(lower_x, p[18] - reach);
    upper_x = std::max(upper_x, p[18] + reach);
    half[1] = std::max(p[14], p[14] * p[17]);
  } else if (p[0] == 1) {
    half[0] = half[1] = std::max(p[13], p[14]);
    lower_x = -half[0];
    upper_x = half[0];
  }
  const double middle = 0.5 * (lower_x + upper_x);
  half[0] = 0.5 * (upper_x - lower_x);
  Bounds b;
  for (int k = 0; k < 3; ++k) {  // columns of the world-to-local rotation are the local axes in world coordinates
    double reach = 0;
    if (p[0] == 2) {
      for (int j = 0; j < 3; ++j) reach += p[4 + 3 * j + k] * p[4 + 3 * j + k] * half[j] * half[j];
      reach = std::sqrt(reach);
    } else {
      for (int j = 0; j < 3; ++j) reach += std::fabs(p[4 + 3 * j + k]) * half[j];
    }
    const double centre = p[1 + k] + p[4 + k] * middle;
    b.lo[k] = centre - reach;
    b.hi[k] = centre + reach;
  }
  return b;
}

struct Builder {
  const std::vector<Bounds>& boxes;
  std::vector<int32_t> order;
  std::vector<float> bounds;
  std::vector<int32_t> links;

  int32_t push() {
    bounds.resize(bounds.size() + 6);
    links.resize(links.size() + 2);
    return static_cast<int32_t>(links.size() / 2 - 1);
  }

  void build(int32_t node, int32_t first, int32_t count, int depth) {
    Bounds all, centres;
    for (int32_t i = first; i < first + count; ++i) {
      const Bounds& b = boxes[order[i]];
      all.add(b);
      Bounds c;
      for (int k = 0; k < 3; ++k) c.lo[k] = c.hi[k] = 0.5 * (b.lo[k] + b.hi[k]);
      centres.add(c);
    }
    for (int k = 0; k < 3; ++k) {  // outwards, so that float32 bounds hold the float64 solids
      const float inf = std::numeric_limits<float>::infinity();
      bounds[6 * node + k] = std::nextafter(float(all.lo[k] - 1e-6), -inf);
      bounds[6 * node + 3 + k] = std::nextafter(float(all.hi[k] + 1e-6), inf);
    }
    links[2 * node] = first;
    links[2 * node + 1] = count;
    if (count <= 2 || depth >= scene::kStack - 4) return;
    constexpr int kBins = 16;
    double best = all.area() * count;
    int axis = -1, cut = 0;
    for (int k = 0; k < 3; ++k) {
      const double extent = centres.hi[k] - centres.lo[k];
      if (extent < 1e-9) continue;
      std::array<Bounds, kBins> bins;
      std::array<int32_t, kBins> numbers{};
      for (int32_t i = first; i < first + count; ++i) {
        const Bounds& b = boxes[order[i]];
        const int bin = bin_of(b, k, centres.lo[k], extent, kBins);
        bins[bin].add(b);
        ++numbers[bin];
      }
      std::array<double, kBins> right{};
      Bounds sum;
      int32_t number = 0;
      for (int b = kBins - 1; b > 0; --b) {
        sum.add(bins[b]);
        number += numbers[b];
        right[b] = sum.area() * number;
      }
      Bounds left;
      number = 0;
      for (int b = 0; b + 1 < kBins; ++b) {
        left.add(bins[b]);
        number += numbers[b];
        if (number == 0 || number == count) continue;
        const double cost = left.area() * number + right[b + 1] + 0.5 * all.area();
        if (cost < best) {
          best = cost;
          axis = k;
          cut = b;
        }
      }
    }
    int32_t middle = first + count / 2;
    if (axis >= 0) {
      const double extent = centres.hi[axis] - centres.lo[axis], low = centres.lo[axis];
      const auto split = std::stable_partition(order.begin() + first, order.begin() + first + count, [&](int32_t id) {
        return bin_of(boxes[id], axis, low, extent, kBins) <= cut;
      });
      middle = static_cast<int32_t>(split - order.begin());
    } else if (count <= 8) {
      return;
    }
    const int32_t left = push();
    push();
    links[2 * node] = left;
    links[2 * node + 1] = 0;
    build(left, first, middle - first, depth + 1);
    build(left + 1, middle, first + count - middle, depth + 1);
  }

  static int bin_of(const Bounds& b, int k, double low, double extent, int bins) {
    const int bin = static_cast<int>((0.5 * (b.lo[k] + b.hi[k]) - low) / extent * bins);
    return std::min(std::max(bin, 0), bins - 1);
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> scene_bvh(const at::Tensor& primitives) {
  TORCH_CHECK_VALUE(primitives.device().is_cpu() && primitives.scalar_type() == at::kDouble && primitives.dim() == 2 &&
                        primitives.size(1) == kStride,
                    "scene_bvh: primitives must be a float64 CPU tensor (P, ", kStride, "), got ",
                    primitives.scalar_type(), " ", primitives.sizes(), " on ", primitives.device());
  const at::Tensor table = primitives.contiguous();
  const double* data = table.const_data_ptr<double>();
  const int64_t count = table.size(0);
  TORCH_CHECK_VALUE(count < std::numeric_limits<int32_t>::max() / 4, "scene_bvh: too many primitives: ", count);
  std::vector<Bounds> boxes(count);
  for (int64_t i = 0; i < count; ++i) {
    const double* p = data + i * kStride;
    for (int k = 0; k < kStride; ++k) {
      TORCH_CHECK_VALUE(std::isfinite(p[k]), "scene_bvh: primitive ", i, " has a value that is not finite in column ",
                        k);
    }
    TORCH_CHECK_VALUE(p[0] == 0 || p[0] == 1 || p[0] == 2, "scene_bvh: primitive ", i, " has the unknown type ", p[0]);
    TORCH_CHECK_VALUE(p[15] > 0 && p[13] >= 0 && p[14] >= 0 && (p[0] == 1 || (p[13] > 0 && p[14] > 0)),
                      "scene_bvh: primitive ", i, " has no extent");
    boxes[i] = primitive_bounds(p);
  }
  Builder builder{boxes, std::vector<int32_t>(count), {}, {}};
  for (int64_t i = 0; i < count; ++i) builder.order[i] = static_cast<int32_t>(i);
  if (count > 0) {
    const int32_t root = builder.push();
    builder.build(root, 0, static_cast<int32_t>(count), 0);
  }
  const int64_t nodes = static_cast<int64_t>(builder.links.size() / 2);
  at::Tensor bounds = at::empty({nodes, 6}, primitives.options().dtype(at::kFloat));
  at::Tensor links = at::empty({nodes, 2}, primitives.options().dtype(at::kInt));
  at::Tensor order = at::empty({count}, primitives.options().dtype(at::kInt));
  std::copy(builder.bounds.begin(), builder.bounds.end(), bounds.mutable_data_ptr<float>());
  std::copy(builder.links.begin(), builder.links.end(), links.mutable_data_ptr<int32_t>());
  std::copy(builder.order.begin(), builder.order.end(), order.mutable_data_ptr<int32_t>());
  return {bounds, links, order};
}

// A tree that scene_bvh did not make could lead anywhere. Children stand behind their parent, so there is no circle.
void check_tree(const scene::Tree& tree) {
  std::vector<int32_t> depth(tree.nodes, 0);
  bool good = tree.nodes > 0 || tree.count == 0;
  for (int64_t node = 0; good && node < tree.nodes; ++node) {
    const int64_t first = tree.links[2 * node], count = tree.links[2 * node + 1];
    if (count > 0) {
      good = first >= 0 && first + count <= tree.count;
    } else {
      good = count == 0 && first > node && first + 1 < tree.nodes && depth[node] < scene::kStack - 3;
      if (good) depth[first] = depth[first + 1] = depth[node] + 1;
    }
  }
  for (int64_t i = 0; good && i < tree.count; ++i) good = tree.order[i] >= 0 && tree.order[i] < tree.count;
  TORCH_CHECK_VALUE(good,
                    "bounds, links or order is corrupt: they must come from scene_bvh and be passed on unchanged");
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> scene_cast_cpu(
    const at::Tensor& primitives, const at::Tensor& bounds, const at::Tensor& links, const at::Tensor& order,
    const at::Tensor& heights, const at::Tensor& maxima, double x0, double y0, double cell, double top,
    const at::Tensor& origins, const at::Tensor& directions, double near, double far, bool any_hit) {
  const SceneCall call =
      scene_call(primitives, bounds, links, order, heights, maxima, x0, y0, cell, top, origins, directions, any_hit);
  check_tree(call.tree);
  const double* op = call.origins.const_data_ptr<double>();
  const double* dp = call.directions.const_data_ptr<double>();
  const scene::HitRows out = call.rows();
  at::parallel_for(0, call.rays, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out.cast(i, call.tree, call.ground, op + i * call.step, dp + 3 * i, near, far);
    }
  });
  return call.results();
}

}  // namespace
}  // namespace occforge

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("scene_bvh", &occforge::scene_bvh);
  m.impl("scene_cast", &occforge::scene_cast_cpu);
}
