// What the CPU and the CUDA entries of the ray set-up check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "render/ray_samples_kernel.h"

namespace occforge {

inline void check_rays(const at::Tensor& origins, const at::Tensor& directions) {
  TORCH_CHECK_VALUE(directions.dim() == 2 && directions.size(1) == 3, "directions must be (R, 3), found ",
                    directions.sizes());
  TORCH_CHECK_VALUE(origins.sizes() == directions.sizes(), "origins must be of the shape of directions, found ",
                    origins.sizes(), " and ", directions.sizes());
  TORCH_CHECK_TYPE(directions.scalar_type() == at::kFloat || directions.scalar_type() == at::kDouble,
                   "directions must be float32 or float64, found ", directions.scalar_type());
  TORCH_CHECK_TYPE(origins.scalar_type() == directions.scalar_type(), "origins and directions must be of one dtype");
  TORCH_CHECK_VALUE(origins.device() == directions.device(), "origins must be on the device of directions");
}

template <typename T>
Box<T> check_box(at::ArrayRef<double> lower, at::ArrayRef<double> upper) {
  TORCH_CHECK_VALUE(lower.size() == 3 && upper.size() == 3, "lower and upper must have 3 numbers (x, y, z)");
  Box<T> box;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(std::isfinite(lower[axis]) && std::isfinite(upper[axis]) && lower[axis] < upper[axis],
                      "lower must be finite and below upper, found ", lower, " and ", upper);
    box.lower[axis] = static_cast<T>(lower[axis]);
    box.upper[axis] = static_cast<T>(upper[axis]);
  }
  return box;
}

inline void check_seed(const std::optional<at::Tensor>& seed, const at::Tensor& beside) {
  if (!seed.has_value()) return;
  TORCH_CHECK_TYPE(seed->scalar_type() == at::kLong, "seed must be int64, found ", seed->scalar_type());
  TORCH_CHECK_VALUE(seed->numel() == 1, "seed must be one number, found ", seed->sizes());
  TORCH_CHECK_VALUE(seed->device() == beside.device(), "seed must be on the device of the rays");
}

inline void check_sample_rows(const at::Tensor& near, const at::Tensor& step, const at::Tensor& counts,
                              const std::optional<at::Tensor>& seed) {
  TORCH_CHECK_VALUE(near.dim() == 1, "near must be (R,), found ", near.sizes());
  TORCH_CHECK_TYPE(near.scalar_type() == at::kFloat || near.scalar_type() == at::kDouble,
                   "near must be float32 or float64, found ", near.scalar_type());
  TORCH_CHECK_TYPE(step.scalar_type() == near.scalar_type(), "near and step must be of one dtype");
  TORCH_CHECK_TYPE(counts.scalar_type() == at::kLong, "counts must be int64, found ", counts.scalar_type());
  TORCH_CHECK_VALUE(step.sizes() == near.sizes() && counts.sizes() == near.sizes(),
                    "near, step and counts must be of one shape, found ", near.sizes(), ", ", step.sizes(), ", ",
                    counts.sizes());
  TORCH_CHECK_VALUE(step.device() == near.device() && counts.device() == near.device(),
                    "near, step and counts must be on one device");
  check_seed(seed, near);
}

}  // namespace occforge
