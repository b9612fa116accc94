// What the CPU and the CUDA entry of the confusion matrix check alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "voxel/confusion_kernel.h"

namespace occforge {

inline void check_confusion(const at::Tensor& pred, const at::Tensor& target, const std::optional<at::Tensor>& mask,
                            int64_t classes) {
  TORCH_CHECK_VALUE(classes >= 1 && classes <= 1024, "num_classes must be in 1..1024, found ", classes);
  TORCH_CHECK_VALUE(pred.sizes() == target.sizes(), "pred and target must have the same shape, found ", pred.sizes(),
                    " and ", target.sizes());
  for (const at::Tensor& labels : {pred, target}) {
    TORCH_CHECK_TYPE(labels.scalar_type() == at::kByte || labels.scalar_type() == at::kLong,
                     "pred and target must be uint8 or int64, found ", labels.scalar_type());
    TORCH_CHECK_VALUE(labels.device() == target.device(), "pred and target must be on one device");
  }
  if (mask.has_value()) {
    TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask must be bool, found ", mask->scalar_type());
    TORCH_CHECK_VALUE(mask->sizes() == target.sizes(), "mask must have the shape of target, found ", mask->sizes(),
                      " and ", target.sizes());
    TORCH_CHECK_VALUE(mask->device() == target.device(), "mask must be on the device of target");
  }
}

inline void check_predictions(int64_t wrong, int64_t classes) {
  TORCH_CHECK_VALUE(wrong == 0, "pred must be in 0..", classes - 1, " wherever it counts, found ", wrong,
                    " cells with another label");
}

}  // namespace occforge
