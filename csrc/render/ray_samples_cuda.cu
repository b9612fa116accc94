#include <ATen/Dispatch.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "render/ray_samples_check.h"

namespace occforge {
namespace {

template <typename T>
__global__ void clip_kernel(Box<T> box, int64_t rays, const T* origins, const T* directions, T low, T high, T* near,
                            T* far) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  near[r] = low;
  far[r] = high;
  clip_to_box(box, origins + 3 * r, directions + 3 * r, near[r], far[r]);
}

std::tuple<at::Tensor, at::Tensor> clip_rays_cuda(const at::Tensor& origins_, const at::Tensor& directions_,
                                                  at::ArrayRef<double> lower, at::ArrayRef<double> upper, double low,
                                                  double high) {
  check_rays(origins_, directions_);
  const c10::cuda::CUDAGuard guard(directions_.device());
  const at::Tensor origins = origins_.contiguous(), directions = directions_.contiguous();
  const int64_t rays = directions.size(0);
  at::Tensor near = at::empty({rays}, directions.options()), far = at::empty({rays}, directions.options());
  AT_DISPATCH_FLOATING_TYPES(directions.scalar_type(), "clip_rays", [&] {
    const Box<scalar_t> box = check_box<scalar_t>(lower, upper);
    if (rays > 0) {
      clip_kernel<scalar_t><<<blocks_of(rays), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          box, rays, origins.const_data_ptr<scalar_t>(), directions.const_data_ptr<scalar_t>(),
          static_cast<scalar_t>(low), static_cast<scalar_t>(high), near.data_ptr<scalar_t>(), far.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {near, far};
}

// One block a ray: its samples lie side by side.
template <typename T>
__global__ void place_kernel(int64_t rays, const T* near, const T* step, const int64_t* offset, T position,
                             const int64_t* seed, T* t, int64_t* ray) {
  for (int64_t r = blockIdx.x; r < rays; r += gridDim.x) {
    const SampleRow<T> row{near[r], step[r], position, seed != nullptr, ray_key(seed != nullptr ? *seed : 0, r)};
    const int64_t begin = offset[r], count = offset[r + 1] - begin;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      t[begin + i] = row.at(i);
      ray[begin + i] = r;
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ray_samples_cuda(const at::Tensor& near_, const at::Tensor& step_,
                                                                const at::Tensor& counts_, double position,
                                                                const std::optional<at::Tensor>& seed) {
  check_sample_rows(near_, step_, counts_, seed);
  const c10::cuda::CUDAGuard guard(near_.device());
  const at::Tensor near = near_.contiguous(), step = step_.contiguous();
  const int64_t rays = counts_.size(0);
  at::Tensor offset = at::zeros({rays + 1}, counts_.options());
  at::Tensor ends = offset.slice(0, 1);
  at::cumsum_out(ends, counts_.clamp_min(0), 0);
  const int64_t samples = offset[rays].item<int64_t>();  // the host waits: the size of the result depends on the rays
  at::Tensor t = at::empty({samples}, near.options()), ray = at::empty({samples}, counts_.options());
  if (samples > 0) {
    AT_DISPATCH_FLOATING_TYPES(near.scalar_type(), "ray_samples", [&] {
      const auto blocks = static_cast<unsigned>(rays < 65535 ? rays : 65535);
      place_kernel<scalar_t><<<blocks, 128, 0, c10::cuda::getCurrentCUDAStream()>>>(
          rays, near.const_data_ptr<scalar_t>(), step.const_data_ptr<scalar_t>(), offset.const_data_ptr<int64_t>(),
          static_cast<scalar_t>(position), seed.has_value() ? seed->const_data_ptr<int64_t>() : nullptr,
          t.data_ptr<scalar_t>(), ray.data_ptr<int64_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {t, ray, offset};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("clip_rays", &clip_rays_cuda);
  m.impl("ray_samples", &ray_samples_cuda);
}

}  // namespace occforge
