#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda_launch.h"
#include "voxel/ray_counts_check.h"

namespace occforge {
namespace {

constexpr int kRays = 128;  // of a block at a time: double precision takes many registers
constexpr unsigned kMaxBlocks = 1 << 16;

__device__ FirstHit first_hit(const RayCountFrame& frame, const uint8_t* grid, const double* origin,
                              const double* direction) {
  FirstHit hit{
      grid, frame.grid.size[1] * frame.grid.size[2], frame.grid.size[2], frame.free, frame.free, {-1, -1, -1}, 0.0,
      0.0};
  walk_grid(frame.grid, origin, direction, 0.0, std::numeric_limits<double>::infinity(), hit);
  return hit;
}

// One ray a thread at a time. Whole numbers are added, so the order of the additions does not matter.
__global__ void ray_counts_kernel(RayCountFrame frame, int64_t origins_count, int64_t rays, const uint8_t* pred,
                                  const uint8_t* target, const uint8_t* ring, const double* origins,
                                  const double* directions, unsigned long long* counts) {
  const auto add = [counts](int32_t at) { atomicAdd(counts + at, 1ull); };
  for (int64_t r = thread_number(); r < origins_count * rays; r += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const double* origin = origins + 3 * (r / rays);
    const double* direction = directions + 3 * (r % rays);
    const FirstHit truth = first_hit(frame, target, origin, direction);
    if (truth.cell[0] < 0) continue;
    const FirstHit found = first_hit(frame, pred, origin, direction);
    count_ray(frame, ring[truth.cell[0] * frame.grid.size[1] + truth.cell[1]], found.label, found.exit, truth.label,
              truth.exit, add);
  }
}

at::Tensor ray_counts_cuda(const at::Tensor& pred_, const at::Tensor& target_, const at::Tensor& ring_,
                           const at::Tensor& origins_, const at::Tensor& directions_, at::ArrayRef<double> lower,
                           at::ArrayRef<double> voxel_size, int64_t free, int64_t num_classes, int64_t rings,
                           at::ArrayRef<double> thresholds) {
  const RayCountFrame frame = check_ray_counts(pred_, target_, ring_, origins_, directions_, lower, voxel_size, free,
                                               num_classes, rings, thresholds);
  const c10::cuda::CUDAGuard guard(target_.device());
  const at::Tensor pred = pred_.contiguous(), target = target_.contiguous(), ring = ring_.contiguous();
  const at::Tensor origins = origins_.contiguous(), directions = directions_.contiguous();
  at::Tensor counts = at::zeros({rings, frame.columns(), num_classes}, target.options().dtype(at::kLong));
  const int64_t rays = origins.size(0) * directions.size(0);
  if (rays > 0) {
    const unsigned blocks = std::min(blocks_of(rays, kRays), kMaxBlocks);
    ray_counts_kernel<<<blocks, kRays, 0, c10::cuda::getCurrentCUDAStream()>>>(
        frame, origins.size(0), directions.size(0), pred.const_data_ptr<uint8_t>(), target.const_data_ptr<uint8_t>(),
        ring.const_data_ptr<uint8_t>(), origins.const_data_ptr<double>(), directions.const_data_ptr<double>(),
        reinterpret_cast<unsigned long long*>(counts.data_ptr<int64_t>()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return counts;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) { m.impl("ray_counts", &ray_counts_cuda); }

}  // namespace occforge
