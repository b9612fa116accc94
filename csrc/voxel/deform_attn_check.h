// What the CPU and the CUDA entry of deformable attention check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "voxel/deform_attn_kernel.h"

namespace occforge {

inline AttnShape check_attn(const at::Tensor& value, const at::Tensor& locations, const at::Tensor& weights,
                            const at::Tensor& sample, at::ArrayRef<int64_t> shapes) {
  TORCH_CHECK_VALUE(value.dim() == 4, "value must be (N, S, H, C), found ", value.sizes());
  TORCH_CHECK_VALUE(locations.dim() == 5 && locations.size(4) == 2, "locations must be (R, H, L, P, 2), found ",
                    locations.sizes());
  TORCH_CHECK_VALUE(weights.sizes() == locations.sizes().slice(0, 4), "weights must be ", locations.sizes().slice(0, 4),
                    ", found ", weights.sizes());
  TORCH_CHECK_VALUE(sample.dim() == 1 && sample.size(0) == locations.size(0), "sample must be (", locations.size(0),
                    ",), found ", sample.sizes());
  TORCH_CHECK_VALUE(locations.size(1) == value.size(2), "value and locations must have one number of heads, found ",
                    value.sizes(), " and ", locations.sizes());
  TORCH_CHECK_TYPE(value.scalar_type() == locations.scalar_type() && value.scalar_type() == weights.scalar_type(),
                   "value, locations and weights must be of one dtype, found ", value.scalar_type(), ", ",
                   locations.scalar_type(), " and ", weights.scalar_type());
  TORCH_CHECK_TYPE(sample.scalar_type() == at::kLong, "sample must be int64, found ", sample.scalar_type());
  for (const at::Tensor& other : {locations, weights, sample}) {
    TORCH_CHECK_VALUE(other.device() == value.device(), "all tensors must be on the device of value");
  }
  TORCH_CHECK_VALUE(locations.size(2) <= kMostLevels, "at most ", kMostLevels, " levels, found ", locations.size(2));
  TORCH_CHECK_VALUE(static_cast<int64_t>(shapes.size()) == 2 * locations.size(2), "shapes must be ", locations.size(2),
                    " pairs (h, w), found ", shapes);
  AttnShape shape{value.size(0),     value.size(1),     value.size(2),     value.size(3),
                  locations.size(0), locations.size(2), locations.size(3), {}};
  int64_t start = 0;
  for (int64_t l = 0; l < shape.levels; ++l) {
    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
    TORCH_CHECK_VALUE(height > 0 && width > 0 && height < (int64_t{1} << 24) && width < (int64_t{1} << 24),
                      "shapes must be in 1..2^24 - 1, found ", shapes);
    shape.level[l] = {height, width, start};
    start += height * width;
  }
  TORCH_CHECK_VALUE(start == shape.sites, "value must have ", start, " sites for these shapes, found ", value.sizes());
  return shape;
}

inline void check_attn_grad(const at::Tensor& grad, const at::Tensor& value, const AttnShape& shape) {
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == shape.queries && grad.size(1) == shape.heads * shape.channels,
                    "grad must be (", shape.queries, ", ", shape.heads * shape.channels, "), found ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == value.scalar_type(), "grad must be of the dtype of value, found ",
                   grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == value.device(), "grad must be on the device of value");
}

}  // namespace occforge
