#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda_launch.h"
#include "voxel/confusion_check.h"

namespace occforge {
namespace {

constexpr int kPerThread = 32;
constexpr int64_t kSharedBins = 10000;  // 40 kB: tables of up to 99 classes live in shared memory

// Integer additions: the result does not depend on their order.
template <typename pred_t, typename target_t>
__global__ void confusion_kernel(int64_t total, int32_t classes, const pred_t* pred, const target_t* target,
                                 const bool* mask, unsigned long long* sums) {
  extern __shared__ unsigned int table[];
  const int32_t bins = classes * classes + 2;
  const bool shared = bins <= kSharedBins;
  if (shared) {
    for (int32_t i = threadIdx.x; i < bins; i += blockDim.x) table[i] = 0;
    __syncthreads();
  }
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kThreads * kPerThread;
  for (int64_t k = 0; k < kPerThread; ++k) {
    const int64_t i = begin + k * kThreads + threadIdx.x;
    if (i >= total) break;
    const int32_t bin = confusion_bin(pred[i], target[i], mask == nullptr || mask[i], classes);
    if (bin == classes * classes) continue;
    if (shared) {
      atomicAdd(table + bin, 1u);
    } else {
      atomicAdd(sums + bin, 1ull);
    }
  }
  if (!shared) return;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < bins; i += blockDim.x) {
    if (table[i] > 0) atomicAdd(sums + i, static_cast<unsigned long long>(table[i]));
  }
}

// The host waits once, to raise where a prediction is no class.
at::Tensor confusion_matrix_cuda(const at::Tensor& pred_, const at::Tensor& target_, int64_t num_classes,
                                 const std::optional<at::Tensor>& mask_) {
  check_confusion(pred_, target_, mask_, num_classes);
  const c10::cuda::CUDAGuard guard(target_.device());
  const at::Tensor pred = pred_.contiguous(), target = target_.contiguous();
  const at::Tensor mask = mask_.has_value() ? mask_->contiguous() : at::Tensor();
  const int64_t total = target.numel(), bins = num_classes * num_classes + 2;
  at::Tensor sums = at::zeros({bins}, target.options().dtype(at::kLong));
  if (total > 0) {
    const unsigned blocks = blocks_of(total, kThreads * kPerThread);
    const size_t bytes = bins <= kSharedBins ? bins * sizeof(unsigned int) : 0;
    const auto launch = [&](const auto* pred_data, const auto* target_data) {
      confusion_kernel<<<blocks, kThreads, bytes, c10::cuda::getCurrentCUDAStream()>>>(
          total, static_cast<int32_t>(num_classes), pred_data, target_data,
          mask.defined() ? mask.const_data_ptr<bool>() : nullptr,
          reinterpret_cast<unsigned long long*>(sums.data_ptr<int64_t>()));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    const bool pred_is_byte = pred.scalar_type() == at::kByte;
    if (target.scalar_type() == at::kByte) {
      if (pred_is_byte) {
        launch(pred.const_data_ptr<uint8_t>(), target.const_data_ptr<uint8_t>());
      } else {
        launch(pred.const_data_ptr<int64_t>(), target.const_data_ptr<uint8_t>());
      }
    } else if (pred_is_byte) {
      launch(pred.const_data_ptr<uint8_t>(), target.const_data_ptr<int64_t>());
    } else {
      launch(pred.const_data_ptr<int64_t>(), target.const_data_ptr<int64_t>());
    }
  }
  check_predictions(sums[bins - 1].item<int64_t>(), num_classes);
  return sums.narrow(0, 0, num_classes * num_classes).view({num_classes, num_classes}).clone();
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) { m.impl("confusion_matrix", &confusion_matrix_cuda); }

}  // namespace occforge
