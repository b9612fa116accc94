// What the CPU and the CUDA entries of compositing check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "render/compositing_kernel.h"

namespace occforge {

inline void check_beside(const char* name, const at::Tensor& value, const at::Tensor& first) {
  TORCH_CHECK_TYPE(value.scalar_type() == first.scalar_type(), name, " must be ", first.scalar_type(), " too, found ",
                   value.scalar_type());
  TORCH_CHECK_VALUE(value.device() == first.device(), name, " must be on ", first.device(), ", found ", value.device());
}

// One number for all samples (step 0) or one a sample (step 1).
inline int64_t check_per_sample(const char* name, const at::Tensor& value, const at::Tensor& samples) {
  check_beside(name, value, samples);
  TORCH_CHECK_VALUE(value.dim() == 1 && (value.size(0) == 1 || value.size(0) == samples.size(0)), name,
                    " must have 1 or ", samples.size(0), " entries, found ", value.sizes());
  return value.size(0) == 1 ? 0 : 1;
}

inline int64_t check_density(const at::Tensor& density, const at::Tensor& interval) {
  TORCH_CHECK_VALUE(density.dim() == 1, "density must be (M,), found ", density.sizes());
  return check_per_sample("interval", interval, density);
}

// Number of rays. The entries of offset are checked where they are read.
inline int64_t check_packed(const char* name, const at::Tensor& samples, const at::Tensor& offset) {
  TORCH_CHECK_VALUE(samples.dim() == 1, name, " must be (M,), found ", samples.sizes());
  TORCH_CHECK_TYPE(offset.scalar_type() == at::kLong, "offset must be int64, found ", offset.scalar_type());
  TORCH_CHECK_VALUE(offset.dim() == 1 && offset.size(0) >= 1, "offset must be (R + 1,), found ", offset.sizes());
  TORCH_CHECK_VALUE(offset.device() == samples.device(), "offset must be on the device of ", name);
  return offset.size(0) - 1;
}

inline void check_weights_grad(const at::Tensor& grad_weights, const at::Tensor& grad_last, const at::Tensor& alpha,
                               int64_t rays) {
  TORCH_CHECK_VALUE(grad_weights.sizes() == alpha.sizes(), "grad_weights must be of the shape of alpha, found ",
                    grad_weights.sizes());
  TORCH_CHECK_VALUE(grad_last.dim() == 1 && grad_last.size(0) == rays, "grad_transmittance must be (R,), found ",
                    grad_last.sizes());
  check_beside("grad_weights", grad_weights, alpha);
  check_beside("grad_transmittance", grad_last, alpha);
}

inline void check_values(const at::Tensor& weights, const at::Tensor& values) {
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(0) == weights.size(0), "values must be (", weights.size(0),
                    ", C), found ", values.sizes());
  check_beside("values", values, weights);
}

inline void check_ray_grad(const at::Tensor& grad, at::IntArrayRef shape, const at::Tensor& weights) {
  TORCH_CHECK_VALUE(grad.sizes() == shape, "grad must be ", shape, ", found ", grad.sizes());
  check_beside("grad", grad, weights);
}

inline int64_t check_distortion(const at::Tensor& weights, const at::Tensor& middles, const at::Tensor& widths) {
  TORCH_CHECK_VALUE(middles.sizes() == weights.sizes(), "t must be of the shape of weights, found ", middles.sizes());
  check_beside("t", middles, weights);
  return check_per_sample("width", widths, weights);
}

}  // namespace occforge
