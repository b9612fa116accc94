// What the CPU and the CUDA entry of frustum pooling check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "voxel/frustum_pool_kernel.h"

namespace occforge {

inline VoxelFrame check_voxel_frame(at::ArrayRef<double> lower, at::ArrayRef<double> interval,
                                    at::ArrayRef<int64_t> size) {
  TORCH_CHECK_VALUE(lower.size() == 3 && interval.size() == 3 && size.size() == 3,
                    "lower, interval and size must have 3 numbers (x, y, z)");
  VoxelFrame frame;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(std::isfinite(lower[axis]), "lower must be finite, found ", lower);
    TORCH_CHECK_VALUE(std::isfinite(interval[axis]) && interval[axis] > 0,
                      "interval must be finite and above 0, found ", interval);
    TORCH_CHECK_VALUE(size[axis] > 0 && size[axis] < (int64_t{1} << 20), "size must be in 1..2^20 - 1, found ", size);
    frame.lower[axis] = lower[axis];
    frame.interval[axis] = interval[axis];
    frame.size[axis] = size[axis];
  }
  return frame;
}

inline void check_frustum_points(const at::Tensor& points) {
  TORCH_CHECK_VALUE(points.dim() == 6 && points.size(5) == 3, "points must be (B, N, D, h, w, 3), found ",
                    points.sizes());
  TORCH_CHECK_TYPE(points.scalar_type() == at::kFloat || points.scalar_type() == at::kDouble,
                   "points must be float32 or float64, found ", points.scalar_type());
}

struct PoolSizes {
  int64_t batch, cells, channels;  // cells: B Z Y X
  FrustumShape frustum;
};

inline PoolSizes check_pool(const at::Tensor& depth, const at::Tensor& feat, const at::Tensor& voxel,
                            const at::Tensor& point, const at::Tensor& offset, at::ArrayRef<int64_t> size) {
  TORCH_CHECK_VALUE(depth.dim() == 5, "depth must be (B, N, D, h, w), found ", depth.sizes());
  TORCH_CHECK_VALUE(feat.dim() == 5, "feat must be (B, N, C, h, w), found ", feat.sizes());
  for (const int dim : {0, 1, 3, 4}) {
    TORCH_CHECK_VALUE(depth.size(dim) == feat.size(dim),
                      "depth (B, N, D, h, w) and feat (B, N, C, h, w) disagree: ", depth.sizes(), " and ",
                      feat.sizes());
  }
  TORCH_CHECK_TYPE(depth.scalar_type() == feat.scalar_type(), "depth and feat must be of one dtype, found ",
                   depth.scalar_type(), " and ", feat.scalar_type());
  TORCH_CHECK_VALUE(size.size() == 3 && size[0] > 0 && size[1] > 0 && size[2] > 0,
                    "size must be 3 numbers (x, y, z) above 0, found ", size);
  const int64_t cells = depth.size(0) * size[0] * size[1] * size[2];
  TORCH_CHECK_VALUE(voxel.sizes() == depth.sizes(), "indices were made for a frustum of shape ", voxel.sizes(),
                    ", depth has ", depth.sizes());
  TORCH_CHECK_VALUE(point.dim() == 1 && point.size(0) == depth.numel(), "indices.point must have ", depth.numel(),
                    " entries, found ", point.sizes());
  TORCH_CHECK_VALUE(offset.dim() == 1 && offset.size(0) == cells + 1, "indices.offset must have ", cells + 1,
                    " entries for this size, found ", offset.sizes());
  for (const at::Tensor& index : {voxel, point, offset}) {
    TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "indices must be int64, found ", index.scalar_type());
    TORCH_CHECK_VALUE(index.device() == depth.device(), "indices must be on the device of depth, found ",
                      index.device(), " and ", depth.device());
  }
  TORCH_CHECK_VALUE(feat.device() == depth.device(), "feat must be on the device of depth");
  return {depth.size(0), cells, feat.size(2),
          FrustumShape(depth.size(0) * depth.size(1), depth.size(2), depth.size(3) * depth.size(4))};
}

inline void check_pool_grad(const at::Tensor& grad, const at::Tensor& feat, at::ArrayRef<int64_t> size) {
  TORCH_CHECK_VALUE(grad.dim() == 5 && grad.size(0) == feat.size(0) && grad.size(1) == feat.size(2) &&
                        grad.size(2) == size[2] && grad.size(3) == size[1] && grad.size(4) == size[0],
                    "grad must be (B, C, Z, Y, X), found ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == feat.scalar_type(), "grad must be of the dtype of feat, found ",
                   grad.scalar_type(), " and ", feat.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == feat.device(), "grad must be on the device of feat");
}

}  // namespace occforge
