// Confusion matrix of two label grids: how often class t is predicted as class p, among the cells that the mask
// selects.
#pragma once

#include <cstdint>

#include "common.h"

namespace occforge {

// Bin of one cell in a table of classes * classes + 2 counters: t * classes + p; the last but one collects cells that
// do not count (masked out, target not a class), the last one predictions that are no class where they should be.
template <typename pred_t, typename target_t>
OCC_HD int32_t confusion_bin(pred_t pred, target_t target, bool selected, int32_t classes) {
  const bool counts = selected && static_cast<uint64_t>(target) < static_cast<uint64_t>(classes);
  const bool valid = static_cast<uint64_t>(pred) < static_cast<uint64_t>(classes);
  const int32_t bin = static_cast<int32_t>(target) * classes + static_cast<int32_t>(pred);
  return counts ? (valid ? bin : classes * classes + 1) : classes * classes;
}

}  // namespace occforge
