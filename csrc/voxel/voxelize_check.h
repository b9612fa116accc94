// What the CPU and the CUDA entries of voxelisation check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "voxel/voxelize_kernel.h"

namespace occforge {

inline CellFrame check_assign(const at::Tensor& points, const std::optional<at::Tensor>& batch_index,
                              at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, at::ArrayRef<int64_t> size) {
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) >= 3, "points must be (P, 3 or more), found ", points.sizes());
  TORCH_CHECK_TYPE(points.scalar_type() == at::kFloat || points.scalar_type() == at::kDouble,
                   "points must be float32 or float64, found ", points.scalar_type());
  if (batch_index.has_value()) {
    TORCH_CHECK_TYPE(batch_index->scalar_type() == at::kLong, "batch_index must be int64, found ",
                     batch_index->scalar_type());
    TORCH_CHECK_VALUE(batch_index->dim() == 1 && batch_index->size(0) == points.size(0), "batch_index must be (",
                      points.size(0), ",), found ", batch_index->sizes());
    TORCH_CHECK_VALUE(batch_index->device() == points.device(), "batch_index must be on the device of points");
  }
  TORCH_CHECK_VALUE(lower.size() == 3 && voxel_size.size() == 3 && size.size() == 3,
                    "lower, voxel_size and size must have 3 numbers (x, y, z)");
  CellFrame frame;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(std::isfinite(lower[axis]), "lower must be finite, found ", lower);
    TORCH_CHECK_VALUE(std::isfinite(voxel_size[axis]) && voxel_size[axis] > 0,
                      "voxel_size must be finite and above 0, found ", voxel_size);
    TORCH_CHECK_VALUE(size[axis] > 0 && size[axis] < (int64_t{1} << 20), "size must be in 1..2^20 - 1, found ", size);
    frame.lower[axis] = lower[axis];
    frame.voxel_size[axis] = voxel_size[axis];
    frame.size[axis] = size[axis];
  }
  return frame;
}

// The highest sample number whose cells can still be numbered in 63 bits.
inline int64_t highest_sample(const CellFrame& frame) {
  const int64_t grid = frame.size[0] * frame.size[1] * frame.size[2];
  return std::min<int64_t>((std::numeric_limits<int64_t>::max() - 1) / grid - 1, std::numeric_limits<int32_t>::max());
}

inline Reduce check_reduce(const at::Tensor& features, const at::Tensor& inverse, const at::Tensor& point,
                           const at::Tensor& offset, int64_t reduce) {
  TORCH_CHECK_VALUE(features.dim() == 2, "features must be (P, F), found ", features.sizes());
  TORCH_CHECK_VALUE(reduce >= 0 && reduce <= 2, "reduce must be 0 (sum), 1 (mean) or 2 (max), found ", reduce);
  TORCH_CHECK_VALUE(offset.dim() == 1 && offset.size(0) >= 1, "offset must be (V + 1,), found ", offset.sizes());
  for (const at::Tensor& index : {inverse, point}) {
    TORCH_CHECK_VALUE(index.dim() == 1 && index.size(0) == features.size(0), "inverse and point must be (",
                      features.size(0), ",), found ", index.sizes());
  }
  for (const at::Tensor& index : {inverse, point, offset}) {
    TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "indices must be int64, found ", index.scalar_type());
    TORCH_CHECK_VALUE(index.device() == features.device(), "indices must be on the device of features");
  }
  return static_cast<Reduce>(reduce);
}

inline void check_limit(const at::Tensor& coords, const at::Tensor& inverse, const at::Tensor& point,
                        const at::Tensor& offset, int64_t max_points, int64_t max_voxels) {
  TORCH_CHECK_VALUE(max_points > 0 && max_voxels > 0, "max_points and max_voxels must be above 0, found ", max_points,
                    " and ", max_voxels);
  TORCH_CHECK_VALUE(coords.dim() == 2 && coords.size(1) == 4, "coords must be (V, 4), found ", coords.sizes());
  TORCH_CHECK_TYPE(coords.scalar_type() == at::kInt, "coords must be int32, found ", coords.scalar_type());
  TORCH_CHECK_VALUE(offset.dim() == 1 && offset.size(0) == coords.size(0) + 1, "offset must be (", coords.size(0) + 1,
                    ",), found ", offset.sizes());
  TORCH_CHECK_VALUE(inverse.dim() == 1 && point.sizes() == inverse.sizes(), "inverse and point must be (P,), found ",
                    inverse.sizes(), " and ", point.sizes());
  for (const at::Tensor& index : {inverse, point, offset}) {
    TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "indices must be int64, found ", index.scalar_type());
    TORCH_CHECK_VALUE(index.device() == coords.device(), "indices must be on the device of coords");
  }
}

inline Reduce check_reduce_grad(const at::Tensor& grad, const at::Tensor& inverse, const at::Tensor& point,
                                const at::Tensor& offset, const at::Tensor& argmax, int64_t reduce) {
  TORCH_CHECK_VALUE(reduce >= 0 && reduce <= 2, "reduce must be 0 (sum), 1 (mean) or 2 (max), found ", reduce);
  TORCH_CHECK_VALUE(offset.dim() == 1 && offset.size(0) >= 1, "offset must be (V + 1,), found ", offset.sizes());
  TORCH_CHECK_VALUE(grad.dim() == 2 && grad.size(0) == offset.size(0) - 1, "grad must be (", offset.size(0) - 1,
                    ", F), found ", grad.sizes());
  TORCH_CHECK_VALUE(inverse.dim() == 1 && point.sizes() == inverse.sizes(), "inverse and point must be (P,), found ",
                    inverse.sizes(), " and ", point.sizes());
  TORCH_CHECK_VALUE(
      argmax.dim() == 2 && (static_cast<Reduce>(reduce) != Reduce::kMax || argmax.sizes() == grad.sizes()),
      "argmax must be of the shape of grad, or (0, F) where it is not used, found ", argmax.sizes(), " and ",
      grad.sizes());
  for (const at::Tensor& index : {inverse, point, offset, argmax}) {
    TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "indices must be int64, found ", index.scalar_type());
    TORCH_CHECK_VALUE(index.device() == grad.device(), "indices must be on the device of grad");
  }
  return static_cast<Reduce>(reduce);
}

}  // namespace occforge
