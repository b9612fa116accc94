// Ray casting of analytic solids on a GPU: one thread a ray, the arithmetic of scene_cast_kernel.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "cuda_launch.h"
#include "scene_cast_check.h"

namespace occforge {
namespace {

constexpr int kRays = 128;  // of a block at a time: double precision takes many registers
constexpr unsigned kMaxBlocks = 1 << 16;

__global__ void cast_kernel(scene::Tree tree, scene::Ground ground, const double* origins, int64_t step,
                            const double* directions, int64_t rays, double near, double far, scene::HitRows out) {
  for (int64_t i = thread_number(); i < rays; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    out.cast(i, tree, ground, origins + i * step, directions + 3 * i, near, far);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> scene_cast_cuda(
    const at::Tensor& primitives, const at::Tensor& bounds, const at::Tensor& links, const at::Tensor& order,
    const at::Tensor& heights, const at::Tensor& maxima, double x0, double y0, double cell, double top,
    const at::Tensor& origins, const at::Tensor& directions, double near, double far, bool any_hit) {
  const c10::cuda::CUDAGuard guard(directions.device());
  const SceneCall call =
      scene_call(primitives, bounds, links, order, heights, maxima, x0, y0, cell, top, origins, directions, any_hit);
  if (call.rays > 0) {
    const unsigned blocks = std::min(blocks_of(call.rays, kRays), kMaxBlocks);
    cast_kernel<<<blocks, kRays, 0, c10::cuda::getCurrentCUDAStream()>>>(
        call.tree, call.ground, call.origins.const_data_ptr<double>(), call.step,
        call.directions.const_data_ptr<double>(), call.rays, near, far, call.rows());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return call.results();
}

}  // namespace
}  // namespace occforge

TORCH_LIBRARY_IMPL(occforge, CUDA, m) { m.impl("scene_cast", &occforge::scene_cast_cuda); }
