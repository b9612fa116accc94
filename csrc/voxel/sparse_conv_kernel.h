// Sparse convolution: the arithmetic that the CPU and the CUDA code share, and the checks of their arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstdint>
#include <optional>

#include "common.h"

namespace occforge::sparse {

// Geometry along one axis. A convolution's output voxel o sees, under tap k, the input voxel o * stride - padding +
// k * dilation; in a transposed convolution input and output change places.
struct Axis {
  int32_t kernel, stride, padding, dilation;

  // The place that `at` reaches forward; never fails.
  OCC_HD int64_t forward(int64_t at, int32_t tap) const {
    return at * stride - padding + static_cast<int64_t>(tap) * dilation;
  }

  // The place from which `at` is reached, or -1 where there is none.
  OCC_HD int64_t backward(int64_t at, int32_t tap) const {
    const int64_t moved = at + padding - static_cast<int64_t>(tap) * dilation;
    return moved < 0 || moved % stride != 0 ? -1 : moved / stride;
  }
};

struct Geometry {
  Axis axis[3];
  bool transposed;

  OCC_HD int32_t taps() const { return axis[0].kernel * axis[1].kernel * axis[2].kernel; }
  // Input place under a tap of an output voxel; outside the grid or -1 where there is none.
  OCC_HD int64_t source(int a, int64_t out, int32_t tap) const {
    return transposed ? axis[a].backward(out, tap) : axis[a].forward(out, tap);
  }
  // Output place whose tap lies on an input voxel; outside the grid or -1 where there is none.
  OCC_HD int64_t sink(int a, int64_t in, int32_t tap) const {
    return transposed ? axis[a].forward(in, tap) : axis[a].backward(in, tap);
  }
};

struct Grid {
  int64_t x, y, z;

  OCC_HD int64_t key(int64_t b, int64_t i, int64_t j, int64_t k) const { return ((b * x + i) * y + j) * z + k; }
};

// Finalizer of the splitmix64 generator: every bit of the key reaches every bit of the hash.
OCC_HD uint64_t mix(uint64_t key) {
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9ull;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebull;
  return key ^ (key >> 31);
}

inline Geometry make_geometry(at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation, bool transposed) {
  Geometry geometry{};
  geometry.transposed = transposed;
  TORCH_CHECK_VALUE(kernel.size() == 3 && stride.size() == 3 && padding.size() == 3 && dilation.size() == 3,
                    "kernel, stride, padding and dilation must have 3 numbers each");
  int64_t taps = 1;
  for (int a = 0; a < 3; ++a) {
    constexpr int64_t most = 1 << 20;
    TORCH_CHECK_VALUE(kernel[a] >= 1 && kernel[a] <= 1024, "kernel must be in 1..1024, found ", kernel[a]);
    TORCH_CHECK_VALUE(stride[a] >= 1 && stride[a] <= most, "stride must be in 1..2^20, found ", stride[a]);
    TORCH_CHECK_VALUE(padding[a] >= 0 && padding[a] <= most, "padding must be in 0..2^20, found ", padding[a]);
    TORCH_CHECK_VALUE(dilation[a] >= 1 && dilation[a] <= most, "dilation must be in 1..2^20, found ", dilation[a]);
    geometry.axis[a] = {static_cast<int32_t>(kernel[a]), static_cast<int32_t>(stride[a]),
                        static_cast<int32_t>(padding[a]), static_cast<int32_t>(dilation[a])};
    taps *= kernel[a];
  }
  TORCH_CHECK_VALUE(taps <= 1 << 15, "kernel must have at most 32768 taps, found ", taps);
  return geometry;
}

inline Grid make_grid(const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(shape.size() == 3, name, " must have 3 numbers (x, y, z), found ", shape.size());
  for (const int64_t side : shape)
    TORCH_CHECK_VALUE(side >= 1 && side < (int64_t{1} << 31), name, " must be in 1..2^31 - 1, found ", shape);
  TORCH_CHECK_VALUE(
      static_cast<double>(shape[0]) * static_cast<double>(shape[1]) * static_cast<double>(shape[2]) < 4e18, name,
      " has too many voxels to number: ", shape);
  return {shape[0], shape[1], shape[2]};
}

// last_batch: the largest batch index; what is numbered may be rounded up to whole strips (sparse_conv_cpu.cpp)
inline void check_batches(int64_t last_batch, const Grid& grid) {
  const double cells =
      static_cast<double>(grid.x) * static_cast<double>(grid.y + 15) * static_cast<double>(grid.z + 63);
  TORCH_CHECK_VALUE((static_cast<double>(last_batch) + 1) * cells < 4e18, "coords: batch index ", last_batch,
                    " gives too many voxels to number");
}

inline void check_coords(const char* name, const at::Tensor& coords) {
  TORCH_CHECK_VALUE(coords.dim() == 2 && coords.size(1) == 4, name, " must have shape (V, 4), found ", coords.sizes());
  TORCH_CHECK_VALUE(coords.scalar_type() == at::kInt, name, " must be int32, found ", coords.scalar_type());
  TORCH_CHECK_VALUE(coords.size(0) < (int64_t{1} << 31), name, " must have fewer than 2^31 rows");
}

inline void check_map(const char* name, const at::Tensor& index, const at::Tensor& like) {
  TORCH_CHECK_VALUE(index.dim() == 2, name, " must have shape (K, V), found ", index.sizes());
  TORCH_CHECK_VALUE(index.scalar_type() == at::kInt, name, " must be int32, found ", index.scalar_type());
  TORCH_CHECK_VALUE(index.device() == like.device(), name, " must be on ", like.device(), ", found ", index.device());
}

inline void check_features(const char* name, const at::Tensor& features) {
  TORCH_CHECK_VALUE(features.dim() == 2, name, " must have shape (V, C), found ", features.sizes());
  const at::ScalarType type = features.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, name,
                   " must be float32, float64, float16 or bfloat16, found ", type);
}

// index_t, the map of the reverse direction, is for the gradient alone; a wrong one is refused where it is handed over.
inline void check_maps(const at::Tensor& features, const at::Tensor& index, const std::optional<at::Tensor>& index_t) {
  check_features("features", features);
  check_map("index", index, features);
  if (!index_t.has_value()) return;
  check_map("index_t", *index_t, features);
  TORCH_CHECK_VALUE(index_t->size(0) == index.size(0) && index_t->size(1) == features.size(0),
                    "index_t must have shape (", index.size(0), ", ", features.size(0), "), found ", index_t->sizes());
}

inline void check_conv(const at::Tensor& features, const at::Tensor& weight, const at::Tensor& index,
                       const std::optional<at::Tensor>& index_t) {
  check_maps(features, index, index_t);
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(1) == index.size(0) && weight.size(2) == features.size(1),
                    "weight must have shape (C_out, ", index.size(0), ", ", features.size(1), "), found ",
                    weight.sizes());
  TORCH_CHECK_VALUE(weight.scalar_type() == features.scalar_type() && weight.device() == features.device(),
                    "weight must be ", features.scalar_type(), " on ", features.device(), ", found ",
                    weight.scalar_type(), " on ", weight.device());
}

inline void check_weight_grad(const at::Tensor& features, const at::Tensor& grad, const at::Tensor& index,
                              const std::optional<at::Tensor>& index_t) {
  check_maps(features, index, index_t);
  check_features("grad", grad);
  TORCH_CHECK_VALUE(grad.size(0) == index.size(1), "grad must have ", index.size(1), " rows, found ", grad.size(0));
  TORCH_CHECK_VALUE(grad.scalar_type() == features.scalar_type() && grad.device() == features.device(), "grad must be ",
                    features.scalar_type(), " on ", features.device(), ", found ", grad.scalar_type(), " on ",
                    grad.device());
}

inline void check_max_backward(const at::Tensor& grad, const at::Tensor& winner, const at::Tensor& index_t) {
  check_features("grad", grad);
  check_map("winner", winner, grad);
  check_map("index_t", index_t, grad);
  TORCH_CHECK_VALUE(winner.sizes() == grad.sizes(), "winner must have shape ", grad.sizes(), ", found ",
                    winner.sizes());
}

}  // namespace occforge::sparse
