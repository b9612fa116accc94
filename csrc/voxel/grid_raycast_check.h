// What the CPU and the CUDA entry of the grid ray casts check alike. Messages name the argument.
#pragma once

#include <ATen/core/Tensor.h>

#include "voxel/grid_raycast_kernel.h"

namespace occforge {

inline GridFrame check_frame(const at::Tensor& grid, at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size) {
  TORCH_CHECK_TYPE(grid.scalar_type() == at::kByte, "grid must be uint8, found ", grid.scalar_type());
  TORCH_CHECK_VALUE(lower.size() == 3 && voxel_size.size() == 3, "lower and voxel_size must have 3 numbers (x, y, z)");
  GridFrame frame;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(std::isfinite(lower[axis]), "lower must be finite, found ", lower);
    TORCH_CHECK_VALUE(std::isfinite(voxel_size[axis]) && voxel_size[axis] > 0,
                      "voxel_size must be finite and above 0, found ", voxel_size);
    frame.lower[axis] = lower[axis];
    frame.voxel_size[axis] = voxel_size[axis];
    frame.size[axis] = grid.size(grid.dim() - 3 + axis);
    TORCH_CHECK_VALUE(frame.size[axis] <= INT32_MAX, "grid is too large: ", grid.sizes());
  }
  return frame;
}

inline void check_rays(const at::Tensor& grid, const at::Tensor& a, const char* a_name, const at::Tensor& b,
                       const char* b_name) {
  TORCH_CHECK_TYPE(a.scalar_type() == at::kDouble && b.scalar_type() == at::kDouble, a_name, " and ", b_name,
                   " must be float64, found ", a.scalar_type(), " and ", b.scalar_type());
  TORCH_CHECK_VALUE(a.dim() == 2 && a.size(1) == 3, a_name, " must be (R, 3), found ", a.sizes());
  TORCH_CHECK_VALUE(a.sizes() == b.sizes(), a_name, " and ", b_name, " must have the same shape, found ", a.sizes(),
                    " and ", b.sizes());
  TORCH_CHECK_VALUE(grid.device() == a.device() && grid.device() == b.device(), "grid, ", a_name, " and ", b_name,
                    " must be on one device, found ", grid.device(), ", ", a.device(), ", ", b.device());
}

inline void check_cast(const at::Tensor& grid, const at::Tensor& origins, const at::Tensor& directions,
                       const at::Tensor& grid_index, int64_t free, double max_distance) {
  TORCH_CHECK_VALUE(grid.dim() == 4, "grid must be (G, X, Y, Z), found ", grid.sizes());
  check_rays(grid, origins, "origins", directions, "directions");
  TORCH_CHECK_TYPE(grid_index.scalar_type() == at::kLong, "grid_index must be int64, found ", grid_index.scalar_type());
  TORCH_CHECK_VALUE(grid_index.dim() == 1 && grid_index.size(0) == origins.size(0), "grid_index must be (R,) = (",
                    origins.size(0), ",), found ", grid_index.sizes());
  TORCH_CHECK_VALUE(grid_index.device() == grid.device(), "grid_index must be on the device of grid");
  TORCH_CHECK_VALUE(free >= 0 && free <= 255, "free must be in 0..255, found ", free);
  TORCH_CHECK_VALUE(max_distance >= 0, "max_distance must not be negative, found ", max_distance);
}

inline void check_observed(const at::Tensor& grid, const at::Tensor& origins, const at::Tensor& targets, int64_t free) {
  TORCH_CHECK_VALUE(grid.dim() == 3, "grid must be (X, Y, Z), found ", grid.sizes());
  check_rays(grid, origins, "origins", targets, "targets");
  TORCH_CHECK_VALUE(free >= 0 && free <= 255, "free must be in 0..255, found ", free);
}

}  // namespace occforge
