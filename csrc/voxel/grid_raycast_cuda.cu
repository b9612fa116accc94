#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "voxel/grid_raycast_check.h"

namespace occforge {
namespace {

constexpr int kRays = 128;  // of a block: double precision takes many registers

// A ray whose grid_index is out of range reads nothing and gives NaN: raising would make the host wait for the device.
__global__ void cast_rays_kernel(GridFrame frame, int64_t rays, int64_t grids, const uint8_t* grid, uint8_t free,
                                 const double* origins, const double* directions, const int64_t* grid_index,
                                 double max_distance, uint8_t* label, int32_t* cell, double* entry, double* exit) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const int64_t g = grid_index[r];
  if (g < 0 || g >= grids) {
    label[r] = free;
    cell[3 * r] = cell[3 * r + 1] = cell[3 * r + 2] = -1;
    entry[r] = exit[r] = nan("");
    return;
  }
  cast_one_ray(frame, grid + g * frame.size[0] * frame.size[1] * frame.size[2], free, origins + 3 * r,
               directions + 3 * r, max_distance, r, label, cell, entry, exit);
}

__global__ void observed_cells_kernel(GridFrame frame, int64_t rays, const uint8_t* grid, uint8_t free,
                                      bool through_occupied, const double* origins, const double* targets,
                                      uint8_t* seen) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  mark_one_segment(frame, grid, free, through_occupied, origins + 3 * r, targets + 3 * r, seen);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cast_rays_cuda(
    const at::Tensor& grid_, const at::Tensor& origins_, const at::Tensor& directions_, const at::Tensor& grid_index_,
    at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, int64_t free, double max_distance) {
  check_cast(grid_, origins_, directions_, grid_index_, free, max_distance);
  const GridFrame frame = check_frame(grid_, lower, voxel_size);
  const c10::cuda::CUDAGuard guard(grid_.device());
  const at::Tensor grid = grid_.contiguous(), origins = origins_.contiguous(), directions = directions_.contiguous();
  const at::Tensor grid_index = grid_index_.contiguous();
  const int64_t rays = origins.size(0);
  at::Tensor label = at::empty({rays}, grid.options());
  at::Tensor cell = at::empty({rays, 3}, grid.options().dtype(at::kInt));
  at::Tensor entry = at::empty({rays}, origins.options());
  at::Tensor exit = at::empty({rays}, origins.options());
  if (rays > 0) {
    cast_rays_kernel<<<blocks_of(rays, kRays), kRays, 0, c10::cuda::getCurrentCUDAStream()>>>(
        frame, rays, grid.size(0), grid.const_data_ptr<uint8_t>(), static_cast<uint8_t>(free),
        origins.const_data_ptr<double>(), directions.const_data_ptr<double>(), grid_index.const_data_ptr<int64_t>(),
        max_distance, label.data_ptr<uint8_t>(), cell.data_ptr<int32_t>(), entry.data_ptr<double>(),
        exit.data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {label, cell, entry, exit};
}

at::Tensor observed_cells_cuda(const at::Tensor& grid_, const at::Tensor& origins_, const at::Tensor& targets_,
                               at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, int64_t free,
                               bool through_occupied) {
  check_observed(grid_, origins_, targets_, free);
  const GridFrame frame = check_frame(grid_, lower, voxel_size);
  const c10::cuda::CUDAGuard guard(grid_.device());
  const at::Tensor grid = grid_.contiguous(), origins = origins_.contiguous(), targets = targets_.contiguous();
  at::Tensor seen = at::zeros(grid.sizes(), grid.options().dtype(at::kBool));
  const int64_t rays = origins.size(0);
  if (rays > 0) {
    observed_cells_kernel<<<blocks_of(rays, kRays), kRays, 0, c10::cuda::getCurrentCUDAStream()>>>(
        frame, rays, grid.const_data_ptr<uint8_t>(), static_cast<uint8_t>(free), through_occupied,
        origins.const_data_ptr<double>(), targets.const_data_ptr<double>(),
        reinterpret_cast<uint8_t*>(seen.data_ptr<bool>()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return seen;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("cast_rays", &cast_rays_cuda);
  m.impl("observed_cells", &observed_cells_cuda);
}

}  // namespace occforge
