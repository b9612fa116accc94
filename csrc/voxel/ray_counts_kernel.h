// The counters of RayIoU: rays from common origins through two label grids, compared where the true one has something.
#pragma once

#include <cstdint>

#include "voxel/grid_raycast_kernel.h"

namespace occforge {

constexpr int kMaxThresholds = 16;

struct RayCountFrame {
  GridFrame grid;
  uint8_t free;
  int32_t classes, thresholds, rings;
  double threshold[kMaxThresholds];

  // Row of one ring and class: rays of that true class, rays of that predicted class, hits within each threshold.
  OCC_HD int32_t columns() const { return 2 + thresholds; }
  OCC_HD int64_t counters() const { return int64_t{rings} * columns() * classes; }
};

// One ray whose true label is not free. `ring` is that of its true cell. Labels beyond the classes count nowhere.
template <typename Add>
OCC_HD void count_ray(const RayCountFrame& frame, int32_t ring, uint8_t pred, double pred_exit, uint8_t target,
                      double target_exit, const Add& add) {
  if (ring >= frame.rings) return;
  const int32_t base = ring * frame.columns() * frame.classes;
  if (target < frame.classes) add(base + target);
  if (pred != frame.free && pred < frame.classes) add(base + frame.classes + pred);
  if (pred != target || target >= frame.classes) return;
  const double error = std::fabs(pred_exit - target_exit);
  for (int32_t k = 0; k < frame.thresholds; ++k) {
    if (error < frame.threshold[k]) add(base + (2 + k) * frame.classes + target);
  }
}

}  // namespace occforge
