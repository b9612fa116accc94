#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "voxel/voxelize_check.h"

namespace occforge {
namespace {

constexpr int64_t kOutside = INT64_MAX;  // as cell number of dropped points: sorts last

// bad[0] becomes 1 if a sample number is out of range (every writer writes the same).
template <typename scalar_t>
__global__ void cell_kernel(CellFrame frame, int64_t total, int64_t row, int64_t highest, const scalar_t* points,
                            const int64_t* batch, int64_t* cell, int64_t* bad) {
  const int64_t i = thread_number();
  if (i >= total) return;
  const int64_t sample = batch == nullptr ? 0 : batch[i];
  const bool wrong = sample < 0 || sample > highest;
  if (wrong) *bad = 1;
  const int64_t inside = grid_cell(frame, points + i * row);
  cell[i] = inside < 0 || wrong ? kOutside : sample * (frame.size[0] * frame.size[1] * frame.size[2]) + inside;
}

__global__ void start_kernel(int64_t total, const int64_t* cell, int64_t* start) {
  const int64_t k = thread_number();
  if (k < total) start[k] = cell[k] != kOutside && (k == 0 || cell[k] != cell[k - 1]);
}

// number[k]: how many voxels have started up to k, this one included. tail: {number of voxels, bad sample numbers}.
__global__ void tail_kernel(int64_t total, const int64_t* number, const int64_t* bad, int64_t* tail) {
  tail[0] = total > 0 ? number[total - 1] : 0;
  tail[1] = *bad;
}

__global__ void voxel_kernel(CellFrame frame, int64_t total, int64_t voxels, const int64_t* cell, const int64_t* number,
                             const int64_t* point, int32_t* coords, int64_t* inverse, int64_t* offset) {
  const int64_t k = thread_number();
  if (k >= total) return;
  const bool kept = cell[k] != kOutside;
  const int64_t voxel = number[k] - 1;
  inverse[point[k]] = kept ? voxel : -1;
  if (kept && (k == 0 || cell[k] != cell[k - 1])) {
    offset[voxel] = k;
    cell_coordinates(frame, cell[k], coords + 4 * voxel);
  }
  if (kept && (k == total - 1 || cell[k + 1] == kOutside)) offset[voxels] = k + 1;
}

// The number of voxels decides the shape of the result: the one place where the host waits for the device.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> voxel_assign_cuda(const at::Tensor& points_,
                                                                             const std::optional<at::Tensor>& batch_,
                                                                             at::ArrayRef<double> lower,
                                                                             at::ArrayRef<double> voxel_size,
                                                                             at::ArrayRef<int64_t> size) {
  const CellFrame frame = check_assign(points_, batch_, lower, voxel_size, size);
  const c10::cuda::CUDAGuard guard(points_.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor points = points_.stride(1) == 1 ? points_ : points_.contiguous();
  const at::Tensor batch = batch_.has_value() ? batch_->contiguous() : at::Tensor();
  const int64_t total = points.size(0);
  const auto options = points.options().dtype(at::kLong);
  at::Tensor cell = at::empty({total}, options), inverse = at::empty({total}, options);
  if (total == 0) {
    return {at::empty({0, 4}, options.dtype(at::kInt)), inverse, at::empty({0}, options), at::zeros({1}, options)};
  }
  at::Tensor bad = at::zeros({1}, options), tail = at::empty({2}, options);
  AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "voxel_assign", [&] {
    cell_kernel<scalar_t><<<blocks_of(total), kThreads, 0, stream>>>(
        frame, total, points.stride(0), highest_sample(frame), points.const_data_ptr<scalar_t>(),
        batch.defined() ? batch.const_data_ptr<int64_t>() : nullptr, cell.data_ptr<int64_t>(), bad.data_ptr<int64_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  const auto [sorted, point] = at::sort(cell, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  at::Tensor start = at::empty({total}, options);
  start_kernel<<<blocks_of(total), kThreads, 0, stream>>>(total, sorted.const_data_ptr<int64_t>(),
                                                          start.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor number = at::cumsum(start, 0);
  tail_kernel<<<1, 1, 0, stream>>>(total, number.const_data_ptr<int64_t>(), bad.const_data_ptr<int64_t>(),
                                   tail.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const at::Tensor host = tail.cpu();
  const int64_t voxels = host.const_data_ptr<int64_t>()[0];
  TORCH_CHECK_VALUE(host.const_data_ptr<int64_t>()[1] == 0, "batch_index must be in 0..", highest_sample(frame),
                    " for this size");
  at::Tensor coords = at::empty({voxels, 4}, options.dtype(at::kInt)), offset = at::zeros({voxels + 1}, options);
  voxel_kernel<<<blocks_of(total), kThreads, 0, stream>>>(frame, total, voxels, sorted.const_data_ptr<int64_t>(),
                                                          number.const_data_ptr<int64_t>(),
                                                          point.const_data_ptr<int64_t>(), coords.data_ptr<int32_t>(),
                                                          inverse.data_ptr<int64_t>(), offset.data_ptr<int64_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {coords, inverse, point, offset};
}

// ---------------------------------------------------------------------------------------------------------------------
// Reduction: one thread a voxel and column. Corrupt indices (which voxel_assign never makes) are clamped to what
// exists.

template <typename scalar_t>
__global__ void reduce_kernel(Reduce reduce, int64_t total, int64_t voxels, int64_t columns, const scalar_t* features,
                              const int64_t* point, const int64_t* offset, scalar_t* out, int64_t* argmax) {
  const int64_t i = thread_number();
  if (i >= voxels * columns) return;
  const int64_t v = i / columns, column = i - v * columns;
  const int64_t begin = offset[v], end = offset[v + 1];
  bool good = begin >= 0 && begin < end && end <= total;
  for (int64_t k = begin; good && k < end; ++k) good = point[k] >= 0 && point[k] < total;
  if (!good) {
    out[i] = scalar_t(0);
    if (argmax != nullptr) argmax[i] = -1;
    return;
  }
  int64_t best;
  reduce_voxel<1, at::opmath_type<scalar_t>>(reduce, features, columns, column, point, begin, end, out + i, &best);
  if (argmax != nullptr) argmax[i] = best;
}

template <typename scalar_t>
__global__ void reduce_backward_kernel(Reduce reduce, int64_t total, int64_t voxels, int64_t columns,
                                       const scalar_t* grad, const int64_t* inverse, const int64_t* offset,
                                       const int64_t* argmax, scalar_t* out) {
  using acc_t = at::opmath_type<scalar_t>;
  const int64_t i = thread_number();
  if (i >= total * columns) return;
  const int64_t p = i / columns, column = i - p * columns, v = inverse[p];
  const bool reached = v >= 0 && v < voxels && (reduce != Reduce::kMax || argmax[v * columns + column] == p);
  const acc_t count = reached && reduce == Reduce::kMean ? static_cast<acc_t>(offset[v + 1] - offset[v]) : acc_t(1);
  out[i] = reached ? static_cast<scalar_t>(static_cast<acc_t>(grad[v * columns + column]) / count) : scalar_t(0);
}

std::tuple<at::Tensor, at::Tensor> voxel_reduce_cuda(const at::Tensor& features_, const at::Tensor& inverse,
                                                     const at::Tensor& point_, const at::Tensor& offset_,
                                                     int64_t reduce_) {
  const Reduce reduce = check_reduce(features_, inverse, point_, offset_, reduce_);
  const c10::cuda::CUDAGuard guard(features_.device());
  const at::Tensor features = features_.contiguous(), point = point_.contiguous(), offset = offset_.contiguous();
  const int64_t columns = features.size(1), voxels = offset.size(0) - 1;
  const bool max = reduce == Reduce::kMax;
  at::Tensor out = at::empty({voxels, columns}, features.options());
  at::Tensor argmax = at::empty({max ? voxels : 0, columns}, point.options());
  if (out.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "voxel_reduce", [&] {
      reduce_kernel<scalar_t><<<blocks_of(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          reduce, features.size(0), voxels, columns, features.const_data_ptr<scalar_t>(),
          point.const_data_ptr<int64_t>(), offset.const_data_ptr<int64_t>(), out.data_ptr<scalar_t>(),
          max ? argmax.data_ptr<int64_t>() : nullptr);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {out, argmax};
}

at::Tensor voxel_reduce_backward_cuda(const at::Tensor& grad_, const at::Tensor& inverse_, const at::Tensor& point,
                                      const at::Tensor& offset_, const at::Tensor& argmax_, int64_t reduce_) {
  const Reduce reduce = check_reduce_grad(grad_, inverse_, point, offset_, argmax_, reduce_);
  const c10::cuda::CUDAGuard guard(grad_.device());
  const at::Tensor grad = grad_.contiguous(), inverse = inverse_.contiguous(), offset = offset_.contiguous();
  const at::Tensor argmax = argmax_.contiguous();
  at::Tensor out = at::empty({inverse.size(0), grad.size(1)}, grad.options());
  if (out.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "voxel_reduce_backward", [&] {
      reduce_backward_kernel<scalar_t><<<blocks_of(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          reduce, inverse.size(0), grad.size(0), grad.size(1), grad.const_data_ptr<scalar_t>(),
          inverse.const_data_ptr<int64_t>(), offset.const_data_ptr<int64_t>(), argmax.const_data_ptr<int64_t>(),
          out.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("voxel_assign", &voxel_assign_cuda);
  m.impl("voxel_reduce", &voxel_reduce_cuda);
  m.impl("voxel_reduce_backward", &voxel_reduce_backward_cuda);
}

}  // namespace occforge
