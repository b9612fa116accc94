// Ray casting of analytic solids on a GPU: one thread a ray, the arithmetic of scene_cast_kernel.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "scene_cast_kernel.h"

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
  const at::Tensor p = primitives.contiguous(), b = bounds.contiguous(), l = links.contiguous(), q = order.contiguous(),
                   h = heights.contiguous(), m = maxima.contiguous(), o = origins.contiguous(),
                   d = directions.contiguous();
  const int64_t rays = d.size(0);
  scene::Tree tree{p.const_data_ptr<double>(),
                   b.const_data_ptr<float>(),
                   l.const_data_ptr<int32_t>(),
                   q.const_data_ptr<int32_t>(),
                   b.size(0),
                   p.size(0)};
  scene::Ground ground;
  if (h.numel() > 0) {
    ground =
        scene::Ground{h.const_data_ptr<float>(), m.const_data_ptr<float>(), h.size(0), h.size(1), x0, y0, cell, top};
  }
  const int64_t full = any_hit ? 0 : rays;
  at::Tensor primitive = at::empty({rays}, d.options().dtype(at::kInt));
  at::Tensor distance = at::empty({rays}, d.options());
  at::Tensor normal = at::empty({full, 3}, d.options().dtype(at::kFloat));
  at::Tensor uv = at::empty({full, 2}, d.options().dtype(at::kFloat));
  at::Tensor face = at::empty({full}, d.options().dtype(at::kByte));
  if (rays > 0) {
    const int64_t blocks = (rays + 127) / 128;
    cast_kernel<<<static_cast<unsigned>(blocks < 65535 ? blocks : 65535), 128, 0, c10::cuda::getCurrentCUDAStream()>>>(
        tree, ground, o.const_data_ptr<double>(), o.size(0) == 1 ? 0 : 3, d.const_data_ptr<double>(), rays, near, far,
        any_hit, primitive.mutable_data_ptr<int32_t>(), distance.mutable_data_ptr<double>(),
        normal.mutable_data_ptr<float>(), uv.mutable_data_ptr<float>(), face.mutable_data_ptr<uint8_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {primitive, distance, normal, uv, face};
}

}  // namespace
}  // namespace occforge

TORCH_LIBRARY_IMPL(occforge, CUDA, m) { m.impl("scene_cast", &occforge::scene_cast_cuda); }
