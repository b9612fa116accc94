// What the CPU and the CUDA entries of upsample_rows check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>

#include "voxel/upsample_rows_kernel.h"

namespace occforge {

inline UpsampleGrid check_upsample_grid(int64_t batch, int64_t depth, int64_t height, int64_t width, int64_t scale) {
  TORCH_CHECK_VALUE(batch >= 0 && depth >= 0 && height >= 0 && width >= 0, "sizes must not be negative");
  TORCH_CHECK_VALUE(scale >= 1 && scale <= 64, "scale must be in 1..64, found ", scale);
  const long double fine =
      static_cast<long double>(batch) * depth * height * width * static_cast<long double>(scale * scale * scale);
  TORCH_CHECK_VALUE(fine < static_cast<long double>(std::numeric_limits<int64_t>::max()), "the fine grid is too large");
  return {batch, {depth, height, width}, scale};
}

inline void check_upsample_rows(const at::Tensor& values, const at::Tensor& rows) {
  TORCH_CHECK_TYPE(values.is_floating_point() && values.scalar_type() != at::kFloat8_e5m2 &&
                       values.scalar_type() != at::kFloat8_e4m3fn,
                   "values must be floating point, found ", values.scalar_type());
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kLong, "rows must be int64, found ", rows.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() == 1, "rows must have shape (V,), found ", rows.sizes());
  TORCH_CHECK_VALUE(rows.device() == values.device(), "all tensors must be on one device");
}

inline void check_upsample_grad(const at::Tensor& grad, const at::Tensor& rows) {
  check_upsample_rows(grad, rows);
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == rows.size(0), "grad must have shape (V, C) for ", rows.size(0),
                    " rows, found ", grad.sizes());
}

}  // namespace occforge
