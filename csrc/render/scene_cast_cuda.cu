// Ray casting of analytic solids on a GPU: one thread a ray, the arithmetic of scene_cast_kernel.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "scene_cast_check.h"

namespace occforge {
namespace {

__global__ void cast_kernel(scene::Tree tree, scene::Ground ground, const double* origins, int64_t step,
                            const double* directions, int64_t rays, double near, double far, bool any_hit, int32_t* id,
                            double* t, float* n, float* w, uint8_t* f) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rays; i += int64_t(gridDim.x) * blockDim.x) {
    const scene::Hit hit =
        scene::cast(tree, ground, origins + i * step, directions + 3 * i, near, far, any_hit, !any_hit);
    id[i] = hit.primitive;
    t[i] = hit.primitive < 0 ? INFINITY : hit.distance;
    if (any_hit) continue;
    for (int k = 0; k < 3; ++k) n[3 * i + k] = static_cast<float>(hit.normal[k]);
    for (int k = 0; k < 2; ++k) w[2 * i + k] = static_cast<float>(hit.uv[k]);
    f[i] = static_cast<uint8_t>(hit.face);
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
    const int64_t blocks = (call.rays + 127) / 128;
    cast_kernel<<<static_cast<unsigned>(blocks < 65535 ? blocks : 65535), 128, 0, c10::cuda::getCurrentCUDAStream()>>>(
        call.tree, call.ground, call.origins.const_data_ptr<double>(), call.step,
        call.directions.const_data_ptr<double>(), call.rays, near, far, any_hit,
        call.primitive.mutable_data_ptr<int32_t>(), call.distance.mutable_data_ptr<double>(),
        call.normal.mutable_data_ptr<float>(), call.uv.mutable_data_ptr<float>(),
        call.face.mutable_data_ptr<uint8_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return call.results();
}

}  // namespace
}  // namespace occforge

TORCH_LIBRARY_IMPL(occforge, CUDA, m) { m.impl("scene_cast", &occforge::scene_cast_cuda); }
