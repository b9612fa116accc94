#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "voxel/deform_attn_check.h"

namespace occforge {
namespace {

// Row 0 of the values that the head reads, or null where the query names no image (raising would make the host wait).
template <typename scalar_t>
__device__ __forceinline__ scalar_t* values_of_head(const AttnShape& shape, scalar_t* value, const int64_t* sample,
                                                    int64_t head) {
  const int64_t image = sample[head / shape.heads];
  if (image < 0 || image >= shape.images) return nullptr;
  return value + (image * shape.sites * shape.heads + head % shape.heads) * shape.channels;
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward: one thread for one channel of one head of one query, neighbouring threads for neighbouring channels.

template <typename scalar_t>
__global__ void attend_kernel(AttnShape shape, int64_t total, const scalar_t* value, const scalar_t* locations,
                              const scalar_t* weights, const int64_t* sample, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t n = thread_number();
  if (n >= total) return;
  const int64_t head = n / shape.channels, stride = shape.heads * shape.channels;
  const scalar_t* rows = values_of_head(shape, value, sample, head);
  acc_t sum = 0;
  for (int64_t l = 0; rows != nullptr && l < shape.levels; ++l) {
    for (int64_t j = (head * shape.levels + l) * shape.points, p = 0; p < shape.points; ++p, ++j) {
      Footprint<acc_t> at;
      if (!find_footprint(shape.level[l], static_cast<acc_t>(locations[2 * j]),
                          static_cast<acc_t>(locations[2 * j + 1]), at)) {
        continue;
      }
      acc_t found = 0;
      for (int k = 0; k < 4; ++k) {
        if (at.row[k] >= 0) {
          found += at.share[k] * static_cast<acc_t>(rows[at.row[k] * stride + n - head * shape.channels]);
        }
      }
      sum += static_cast<acc_t>(weights[j]) * found;
    }
  }
  out[n] = static_cast<scalar_t>(sum);
}

at::Tensor deform_attn_cuda(const at::Tensor& value_, const at::Tensor& locations_, const at::Tensor& weights_,
                            const at::Tensor& sample_, at::ArrayRef<int64_t> shapes) {
  const AttnShape shape = check_attn(value_, locations_, weights_, sample_, shapes);
  const c10::cuda::CUDAGuard guard(value_.device());
  const at::Tensor value = value_.contiguous(), locations = locations_.contiguous();
  const at::Tensor weights = weights_.contiguous(), sample = sample_.contiguous();
  at::Tensor out = at::empty({shape.queries, shape.heads * shape.channels}, value.options());
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deform_attn", [&] {
    attend_kernel<scalar_t><<<blocks_of(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        shape, out.numel(), value.const_data_ptr<scalar_t>(), locations.const_data_ptr<scalar_t>(),
        weights.const_data_ptr<scalar_t>(), sample.const_data_ptr<int64_t>(), out.data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: a group of kLanes neighbouring threads for one head of one query, each for every kLanes-th channel. The
// gradients of places and weights are summed over the group by shuffles; those of the values are added atomically, in
// float32 for float16 and bfloat16, so their order, and the last bits, differ from run to run.

template <int kLanes, typename acc_t>
__device__ __forceinline__ acc_t sum_of_group(unsigned group, acc_t value) {
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_down_sync(group, value, step, kLanes);
  return value;
}

template <int kLanes, typename scalar_t, typename acc_t>
__global__ void spread_kernel(AttnShape shape, int64_t heads, const scalar_t* grad, const scalar_t* value,
                              const scalar_t* locations, const scalar_t* weights, const int64_t* sample,
                              acc_t* grad_value, scalar_t* grad_locations, scalar_t* grad_weights) {
  const int64_t head = thread_number() / kLanes;
  if (head >= heads) return;  // the whole group leaves
  const int lane = threadIdx.x % kLanes;
  const unsigned group = (kLanes == kWarp ? 0xffffffffu : (1u << (kLanes % kWarp)) - 1)
                         << (threadIdx.x % kWarp / kLanes * kLanes);
  const int64_t channels = shape.channels, stride = shape.heads * channels;
  const scalar_t* rows = values_of_head(shape, value, sample, head);
  if (rows == nullptr) return;
  acc_t* sums = values_of_head(shape, grad_value, sample, head);
  const scalar_t* upstream = grad + head * channels;
  for (int64_t l = 0; l < shape.levels; ++l) {
    const MapLevel& level = shape.level[l];
    for (int64_t j = (head * shape.levels + l) * shape.points, p = 0; p < shape.points; ++p, ++j) {
      Footprint<acc_t> at;
      if (!find_footprint(level, static_cast<acc_t>(locations[2 * j]), static_cast<acc_t>(locations[2 * j + 1]), at)) {
        continue;
      }
      const acc_t scale = static_cast<acc_t>(weights[j]);
      acc_t weight = 0, by_x = 0, by_y = 0;
      for (int k = 0; k < 4; ++k) {
        if (at.row[k] < 0) continue;
        acc_t dot = 0;
        for (int64_t c = lane; c < channels; c += kLanes) {
          const acc_t g = static_cast<acc_t>(upstream[c]);
          dot += g * static_cast<acc_t>(rows[at.row[k] * stride + c]);
          atomicAdd(sums + at.row[k] * stride + c, at.share[k] * scale * g);
        }
        weight += at.share[k] * dot;
        by_x += at.by_x[k] * dot;
        by_y += at.by_y[k] * dot;
      }
      weight = sum_of_group<kLanes>(group, weight);
      by_x = sum_of_group<kLanes>(group, by_x);
      by_y = sum_of_group<kLanes>(group, by_y);
      if (lane == 0) {
        grad_weights[j] = static_cast<scalar_t>(weight);
        grad_locations[2 * j] = static_cast<scalar_t>(by_x * scale * static_cast<acc_t>(level.width));
        grad_locations[2 * j + 1] = static_cast<scalar_t>(by_y * scale * static_cast<acc_t>(level.height));
      }
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deform_attn_backward_cuda(
    const at::Tensor& grad_, const at::Tensor& value_, const at::Tensor& locations_, const at::Tensor& weights_,
    const at::Tensor& sample_, at::ArrayRef<int64_t> shapes) {
  const AttnShape shape = check_attn(value_, locations_, weights_, sample_, shapes);
  check_attn_grad(grad_, value_, shape);
  at::globalContext().alertNotDeterministic("deform_attn_backward on CUDA");
  const c10::cuda::CUDAGuard guard(value_.device());
  const at::Tensor grad = grad_.contiguous(), value = value_.contiguous(), locations = locations_.contiguous();
  const at::Tensor weights = weights_.contiguous(), sample = sample_.contiguous();
  const auto type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(type));
  at::Tensor grad_locations = at::zeros(locations.sizes(), value.options());  // places outside are passed over
  at::Tensor grad_weights = at::zeros(weights.sizes(), value.options());
  const int64_t heads = shape.queries * shape.heads;
  if (grad.numel() == 0 || weights.numel() == 0) {
    return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deform_attn_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto launch = [&](auto kernel, int64_t lanes) {
      kernel<<<blocks_of(heads * lanes), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          shape, heads, grad.const_data_ptr<scalar_t>(), value.const_data_ptr<scalar_t>(),
          locations.const_data_ptr<scalar_t>(), weights.const_data_ptr<scalar_t>(), sample.const_data_ptr<int64_t>(),
          grad_value.data_ptr<acc_t>(), grad_locations.data_ptr<scalar_t>(), grad_weights.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    if (shape.channels > 16) {
      launch(spread_kernel<32, scalar_t, acc_t>, 32);
    } else if (shape.channels > 4) {
      launch(spread_kernel<8, scalar_t, acc_t>, 8);
    } else {
      launch(spread_kernel<1, scalar_t, acc_t>, 1);
    }
  });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("deform_attn", &deform_attn_cuda);
  m.impl("deform_attn_backward", &deform_attn_backward_cuda);
}

}  // namespace occforge
