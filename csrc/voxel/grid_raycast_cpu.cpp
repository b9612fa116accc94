#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "voxel/grid_raycast_check.h"

namespace occforge {
namespace {

constexpr int64_t kGrain = 256;

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cast_rays_cpu(
    const at::Tensor& grid_, const at::Tensor& origins_, const at::Tensor& directions_, const at::Tensor& grid_index_,
    at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, int64_t free, double max_distance) {
  check_cast(grid_, origins_, directions_, grid_index_, free, max_distance);
  const GridFrame frame = check_frame(grid_, lower, voxel_size);
  const at::Tensor grid = grid_.contiguous(), origins = origins_.contiguous(), directions = directions_.contiguous();
  const at::Tensor grid_index = grid_index_.contiguous();
  const int64_t rays = origins.size(0), grids = grid.size(0);
  at::Tensor label = at::empty({rays}, grid.options());
  at::Tensor cell = at::empty({rays, 3}, grid.options().dtype(at::kInt));
  at::Tensor entry = at::empty({rays}, origins.options());
  at::Tensor exit = at::empty({rays}, origins.options());
  const uint8_t* cells = grid.const_data_ptr<uint8_t>();
  const double* from = origins.const_data_ptr<double>();
  const double* along = directions.const_data_ptr<double>();
  const int64_t* index = grid_index.const_data_ptr<int64_t>();
  auto* label_out = label.data_ptr<uint8_t>();
  auto* cell_out = cell.data_ptr<int32_t>();
  auto* entry_out = entry.data_ptr<double>();
  auto* exit_out = exit.data_ptr<double>();
  const int64_t volume = frame.size[0] * frame.size[1] * frame.size[2];
  at::parallel_for(0, rays, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      TORCH_CHECK_VALUE(index[r] >= 0 && index[r] < grids, "grid_index must be in 0..", grids - 1, ", found ", index[r],
                        " for ray ", r);
      cast_one_ray(frame, cells + index[r] * volume, static_cast<uint8_t>(free), from + 3 * r, along + 3 * r,
                   max_distance, r, label_out, cell_out, entry_out, exit_out);
    }
  });
  return {label, cell, entry, exit};
}

at::Tensor observed_cells_cpu(const at::Tensor& grid_, const at::Tensor& origins_, const at::Tensor& targets_,
                              at::ArrayRef<double> lower, at::ArrayRef<double> voxel_size, int64_t free,
                              bool through_occupied) {
  check_observed(grid_, origins_, targets_, free);
  const GridFrame frame = check_frame(grid_, lower, voxel_size);
  const at::Tensor grid = grid_.contiguous(), origins = origins_.contiguous(), targets = targets_.contiguous();
  at::Tensor seen = at::zeros(grid.sizes(), grid.options().dtype(at::kBool));
  const uint8_t* cells = grid.const_data_ptr<uint8_t>();
  const double* from = origins.const_data_ptr<double>();
  const double* to = targets.const_data_ptr<double>();
  auto* marks = reinterpret_cast<uint8_t*>(seen.data_ptr<bool>());
  at::parallel_for(0, origins.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      mark_one_segment(frame, cells, static_cast<uint8_t>(free), through_occupied, from + 3 * r, to + 3 * r, marks);
    }
  });
  return seen;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("cast_rays", &cast_rays_cpu);
  m.impl("observed_cells", &observed_cells_cpu);
}

}  // namespace occforge
