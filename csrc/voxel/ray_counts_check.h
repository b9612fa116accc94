// What the CPU and the CUDA entry of ray_counts check alike. Messages name the argument.
#pragma once

#include "voxel/grid_raycast_check.h"
#include "voxel/ray_counts_kernel.h"

namespace occforge {

inline RayCountFrame check_ray_counts(const at::Tensor& pred, const at::Tensor& target, const at::Tensor& ring,
                                      const at::Tensor& origins, const at::Tensor& directions,
                                      at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, int64_t free,
                                      int64_t classes, int64_t rings, at::ArrayRef<double> thresholds) {
  TORCH_CHECK_VALUE(target.dim() == 3 && pred.sizes() == target.sizes(),
                    "pred and target must both be (X, Y, Z), found ", pred.sizes(), " and ", target.sizes());
  TORCH_CHECK_TYPE(
      pred.scalar_type() == at::kByte && target.scalar_type() == at::kByte && ring.scalar_type() == at::kByte,
      "pred, target and ring must be uint8, found ", pred.scalar_type(), ", ", target.scalar_type(), ", ",
      ring.scalar_type());
  TORCH_CHECK_VALUE(ring.dim() == 2 && ring.size(0) == target.size(0) && ring.size(1) == target.size(1),
                    "ring must be (X, Y), found ", ring.sizes());
  TORCH_CHECK_TYPE(origins.scalar_type() == at::kDouble && directions.scalar_type() == at::kDouble,
                   "origins and directions must be float64, found ", origins.scalar_type(), " and ",
                   directions.scalar_type());
  TORCH_CHECK_VALUE(origins.dim() == 2 && origins.size(1) == 3, "origins must be (T, 3), found ", origins.sizes());
  TORCH_CHECK_VALUE(directions.dim() == 2 && directions.size(1) == 3, "directions must be (R, 3), found ",
                    directions.sizes());
  for (const at::Tensor* other : {&pred, &ring, &origins, &directions}) {
    TORCH_CHECK_VALUE(other->device() == target.device(), "all tensors must be on one device, found ", other->device(),
                      " and ", target.device());
  }
  TORCH_CHECK_VALUE(free >= 0 && free <= 255, "free must be in 0..255, found ", free);
  TORCH_CHECK_VALUE(classes >= 1 && classes <= 256, "num_classes must be in 1..256, found ", classes);
  TORCH_CHECK_VALUE(rings >= 1 && rings <= 255, "rings must be in 1..255, found ", rings);
  TORCH_CHECK_VALUE(thresholds.size() <= kMaxThresholds, "at most ", kMaxThresholds, " thresholds, found ",
                    thresholds.size());
  RayCountFrame frame;
  frame.grid = check_frame(target, lower, voxel_size);
  frame.free = static_cast<uint8_t>(free);
  frame.classes = static_cast<int32_t>(classes);
  frame.rings = static_cast<int32_t>(rings);
  frame.thresholds = static_cast<int32_t>(thresholds.size());
  for (size_t k = 0; k < thresholds.size(); ++k) frame.threshold[k] = thresholds[k];
  return frame;
}

}  // namespace occforge
