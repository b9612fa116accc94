// Volume rendering on a GPU: one warp a ray. First the lanes are 32 consecutive samples (density, opacity, and the
// transmittance by a scan), then for each of these samples with any weight the lanes are channels, so that a corner's
// row of semantics is read, and its gradient added, as neighbouring words.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "render/volume_render_check.h"

namespace occforge {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Sum of the values of this lane and those before it.
template <typename T>
__device__ __forceinline__ T warp_prefix(T value, int lane) {
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kAll, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

template <typename T>
struct Grids {
  GridShape<T> shape;
  const T *density, *semantics;
  RenderOptions<T> options;
};

// This lane's sample.
template <typename T>
struct Sample {
  T t, width, weight, left, slope;  // left: transmittance behind it; a sample that is not used weighs 0
  int32_t cell;
  T low[3], high[3];

  __device__ __forceinline__ T factor(int corner) const {
    return (corner & 4 ? high[0] : low[0]) * (corner & 2 ? high[1] : low[1]) * (corner & 1 ? high[2] : low[2]);
  }
};

// Samples begin + 0..31 of the ray, of which `used` count; `left` becomes the transmittance behind the last of those.
template <typename T, typename Row>
__device__ __forceinline__ Sample<T> march_warp(const Grids<T>& g, const Row& row, int64_t begin, int lane, T& left,
                                                int& used, bool& stopped) {
  Sample<T> sample;
  const bool inside = begin + lane < row.count;
  const int64_t i = inside ? begin + lane : row.count - 1;
  sample.t = row.t(i);
  sample.width = row.width(i);
  sample.cell = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const Tent<T> tent = tent_of(row.place(i, sample.t, axis), g.shape.last[axis], g.shape.next[axis]);
    sample.cell += tent.cell * g.shape.stride[axis];
    sample.low[axis] = tent.low;
    sample.high[axis] = tent.high;
  }
  const T* const density = g.density + row.grid * g.shape.cells + sample.cell;
  T value = 0;
  for (int k = 0; k < 8; ++k) value += sample.factor(k) * density[g.shape.corner[k]];
  const Opacity<T> found = opacity_of(value, g.options.shift, row.interval(i));
  sample.slope = found.slope;
  T through = inside ? 1 - found.alpha : T(1);
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kAll, through, step);
    if (lane >= step) through *= before;
  }
  T front = __shfl_up_sync(kAll, through, 1);
  if (lane == 0) front = 1;
  sample.left = left * through;
  const unsigned ends = __ballot_sync(kAll, inside && sample.left < g.options.stop);
  const int64_t remaining = row.count - begin;
  used = remaining < kWarp ? static_cast<int>(remaining) : kWarp;
  stopped = ends != 0;
  if (stopped) used = __ffs(static_cast<int>(ends));
  sample.weight = lane < used ? left * front * found.alpha : T(0);
  left = __shfl_sync(kAll, sample.left, used - 1);
  return sample;
}

// The sample of another lane, as far as interpolating needs it.
template <typename T>
__device__ __forceinline__ Sample<T> broadcast(const Sample<T>& sample, int from) {
  Sample<T> other;
  other.weight = __shfl_sync(kAll, sample.weight, from);
  other.cell = __shfl_sync(kAll, sample.cell, from);
  for (int axis = 0; axis < 3; ++axis) {
    other.low[axis] = __shfl_sync(kAll, sample.low[axis], from);
    other.high[axis] = __shfl_sync(kAll, sample.high[axis], from);
  }
  return other;
}

template <typename T, typename Rays>
__global__ void __launch_bounds__(kWarp* kWarps)
    render_kernel(Grids<T> g, Rays rays, int64_t count, RayPointers<T> out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t channels = g.shape.channels, warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < count; r += warps) {
    const auto row = rays.row(r, g.shape.grids);
    const T* const semantics = g.semantics + row.grid * g.shape.cells * channels;
    T left = 1, mass = 0, moment = 0, pairs = 0, self = 0;
    T* const sums = out.semantics + r * channels;  // each word is read and written by one lane alone
    for (int64_t c = lane; c < channels; c += kWarp) sums[c] = 0;
    bool stopped = false;
    for (int64_t begin = 0; begin < row.count && !stopped; begin += kWarp) {
      int used;
      const Sample<T> sample = march_warp(g, row, begin, lane, left, used, stopped);
      const T w = sample.weight, wt = w * sample.t;
      const T masses = warp_prefix(w, lane), moments = warp_prefix(wt, lane);
      pairs += w * (sample.t * (mass + masses - w) - (moment + moments - wt));
      self += w * w * sample.width;
      mass += __shfl_sync(kAll, masses, kWarp - 1);
      moment += __shfl_sync(kAll, moments, kWarp - 1);
      unsigned wanted = __ballot_sync(kAll, w > g.options.min_weight);
      // up to 32 samples: their sums stay in a register for every 32 channels
      for (int64_t first = 0; first < channels; first += kWarp) {
        const int64_t c = first + lane;
        T sum = 0;
        for (unsigned left_over = wanted; left_over != 0; left_over &= left_over - 1) {
          const Sample<T> other = broadcast(sample, __ffs(static_cast<int>(left_over)) - 1);
          if (c >= channels) continue;
          const T* const from = semantics + static_cast<int64_t>(other.cell) * channels + c;
          T value = 0;
          for (int k = 0; k < 8; ++k) value += other.factor(k) * from[g.shape.corner[k] * channels];
          sum += other.weight * value;
        }
        if (c < channels) sums[c] += sum;
      }
    }
    pairs = warp_sum(pairs);
    self = warp_sum(self);
    if (lane == 0) {
      out.depth[r] = moment;
      out.transmittance[r] = left;
      out.distortion[r] = 2 * pairs + self / 3;
    }
  }
}

// Front to back, with what the forward pass found: `rest` is what is left of sum_j w_j g_j + T_n g_T behind the samples
// dealt with, in double precision since it is found by subtraction.
template <typename T, typename Rays>
__global__ void __launch_bounds__(kWarp* kWarps)
    render_backward_kernel(Grids<T> g, Rays rays, int64_t count, RayPointers<const T> grad, RayPointers<const T> out,
                           T* grad_density, T* grad_semantics) {
  const int lane = threadIdx.x % kWarp;
  const int64_t channels = g.shape.channels, warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; r < count; r += warps) {
    const auto row = rays.row(r, g.shape.grids);
    if (row.count == 0) continue;
    const T *const semantics = g.semantics + row.grid * g.shape.cells * channels,
                   *const upstream = grad.semantics + r * channels, *const rendered = out.semantics + r * channels;
    T* const to_density = grad_density + row.grid * g.shape.cells;
    T* const to_semantics = grad_semantics + row.grid * g.shape.cells * channels;
    double rest = 0;
    bool mine = false;
    for (int64_t c = lane; c < channels; c += kWarp) {
      rest += static_cast<double>(upstream[c]) * static_cast<double>(rendered[c]);
      mine = mine || upstream[c] != 0;
    }
    const bool any = __any_sync(kAll, mine);
    const T grad_depth = grad.depth[r], grad_distortion = grad.distortion[r];
    const T total_mass = 1 - out.transmittance[r], total_moment = out.depth[r];
    rest = warp_sum(rest) + static_cast<double>(grad_depth) * static_cast<double>(out.depth[r]) +
           2 * static_cast<double>(grad_distortion) * static_cast<double>(out.distortion[r]) +
           static_cast<double>(grad.transmittance[r]) * static_cast<double>(out.transmittance[r]);
    T left = 1, mass = 0, moment = 0;
    bool stopped = false;
    for (int64_t begin = 0; begin < row.count && !stopped; begin += kWarp) {
      int used;
      const Sample<T> sample = march_warp(g, row, begin, lane, left, used, stopped);
      const T w = sample.weight, wt = w * sample.t;
      const T masses = warp_prefix(w, lane), moments = warp_prefix(wt, lane);
      const T front = mass + masses - w, front_moment = moment + moments - wt;
      const T back = total_mass - front - w, back_moment = total_moment - front_moment - wt;
      const T apart = sample.t * (front - back) + back_moment - front_moment;
      T value = grad_depth * sample.t + grad_distortion * (2 * apart + T(2.0 / 3.0) * w * sample.width);
      mass += __shfl_sync(kAll, masses, kWarp - 1);
      moment += __shfl_sync(kAll, moments, kWarp - 1);
      unsigned wanted = any ? __ballot_sync(kAll, w > g.options.min_weight) : 0u;
      for (; wanted != 0; wanted &= wanted - 1) {
        const int from = __ffs(static_cast<int>(wanted)) - 1;
        const Sample<T> other = broadcast(sample, from);
        T dot = 0;
        for (int64_t c = lane; c < channels; c += kWarp) {
          const T g_c = upstream[c];
          for (int k = 0; k < 8; ++k) {
            const T factor = other.factor(k);
            if (factor == 0) continue;  // the same for the whole warp
            const int64_t at = (static_cast<int64_t>(other.cell) + g.shape.corner[k]) * channels + c;
            dot += g_c * factor * semantics[at];
            atomicAdd(to_semantics + at, other.weight * factor * g_c);
          }
        }
        dot = warp_sum(dot);
        if (lane == from) value += dot;
      }
      const double taken = warp_prefix(static_cast<double>(w) * static_cast<double>(value), lane);
      if (lane < used) {
        const T slope = sample.slope * (sample.left * value - static_cast<T>(rest - taken));
        for (int k = 0; k < 8; ++k) {
          const T factor = sample.factor(k);
          if (factor != 0) atomicAdd(to_density + sample.cell + g.shape.corner[k], factor * slope);
        }
      }
      rest -= __shfl_sync(kAll, taken, kWarp - 1);
    }
  }
}

using RayOutputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using GridOutputs = std::tuple<at::Tensor, at::Tensor>;

template <typename T>
Grids<T> grids_of(const at::Tensor& density, const at::Tensor& semantics, const RenderOptions<double>& options) {
  return {GridShape<T>(density.size(0), density.size(1), density.size(2), density.size(3), semantics.size(4)),
          density.const_data_ptr<T>(),
          semantics.const_data_ptr<T>(),
          {static_cast<T>(options.shift), static_cast<T>(options.stop), static_cast<T>(options.min_weight)}};
}

// make_rays(a T) gives the rays in that precision.
template <typename MakeRays>
RayOutputs forward(const at::Tensor& density_, const at::Tensor& semantics_, int64_t rays,
                   const RenderOptions<double>& options, const MakeRays& make_rays) {
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  const RayValues out{at::empty({rays}, semantics.options()), at::empty({rays, semantics.size(4)}, semantics.options()),
                      at::empty({rays}, semantics.options()), at::empty({rays}, semantics.options())};
  if (rays > 0) {
    AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render", [&] {
      render_kernel<<<blocks_of(rays, kWarps), kWarp * kWarps, 0, c10::cuda::getCurrentCUDAStream()>>>(
          grids_of<scalar_t>(density, semantics, options), make_rays(scalar_t()), rays, pointers<scalar_t>(out));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {out.depth, out.semantics, out.transmittance, out.distortion};
}

template <typename MakeRays>
GridOutputs backward(const RayValues& grad, const RayValues& out, const at::Tensor& density_,
                     const at::Tensor& semantics_, int64_t rays, const RenderOptions<double>& options,
                     const MakeRays& make_rays) {
  at::globalContext().alertNotDeterministic("volume_render_backward_cuda");
  const at::Tensor density = density_.contiguous(), semantics = semantics_.contiguous();
  at::Tensor grad_density = at::zeros(density.sizes(), density.options());
  at::Tensor grad_semantics = at::zeros(semantics.sizes(), semantics.options());
  if (rays > 0) {
    AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "volume_render_backward", [&] {
      render_backward_kernel<<<blocks_of(rays, kWarps), kWarp * kWarps, 0, c10::cuda::getCurrentCUDAStream()>>>(
          grids_of<scalar_t>(density, semantics, options), make_rays(scalar_t()), rays, const_pointers<scalar_t>(grad),
          const_pointers<scalar_t>(out), grad_density.data_ptr<scalar_t>(), grad_semantics.data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {grad_density, grad_semantics};
}

RayOutputs volume_render_cuda(const at::Tensor& density, const at::Tensor& semantics, const at::Tensor& origins,
                              const at::Tensor& directions, const std::optional<at::Tensor>& grid_index,
                              const std::optional<at::Tensor>& seed, at::ArrayRef<double> lower,
                              at::ArrayRef<double> voxel_size, double near, double far, double step, int64_t count,
                              double position, double unit, double shift, double stop, double min_weight) {
  const RegularArguments arguments{lower, voxel_size, near, far, step, count, position, unit};
  const c10::cuda::CUDAGuard guard(density.device());
  const RayTensors tensors = check_regular(density, semantics, origins, directions, grid_index, seed, arguments);
  return forward(density, semantics, tensors.rays, {shift, stop, min_weight},
                 [&](auto number) { return regular_rays<decltype(number)>(tensors, density, arguments); });
}

GridOutputs volume_render_backward_cuda(
    const at::Tensor& grad_depth, const at::Tensor& grad_semantics, const at::Tensor& grad_transmittance,
    const at::Tensor& grad_distortion, const at::Tensor& depth, const at::Tensor& rendered,
    const at::Tensor& transmittance, const at::Tensor& distortion, const at::Tensor& density,
    const at::Tensor& semantics, const at::Tensor& origins, const at::Tensor& directions,
    const std::optional<at::Tensor>& grid_index, const std::optional<at::Tensor>& seed, at::ArrayRef<double> lower,
    at::ArrayRef<double> voxel_size, double near, double far, double step, int64_t count, double position, double unit,
    double shift, double stop, double min_weight) {
  const RegularArguments arguments{lower, voxel_size, near, far, step, count, position, unit};
  const c10::cuda::CUDAGuard guard(density.device());
  const RayTensors tensors = check_regular(density, semantics, origins, directions, grid_index, seed, arguments);
  const RayValues grad = check_ray_values("grad", grad_depth, grad_semantics, grad_transmittance, grad_distortion,
                                          tensors.rays, semantics);
  const RayValues out = check_ray_values("output", depth, rendered, transmittance, distortion, tensors.rays, semantics);
  return backward(grad, out, density, semantics, tensors.rays, {shift, stop, min_weight},
                  [&](auto number) { return regular_rays<decltype(number)>(tensors, density, arguments); });
}

RayOutputs volume_render_samples_cuda(const at::Tensor& density, const at::Tensor& semantics, const at::Tensor& points,
                                      const at::Tensor& t, const at::Tensor& interval, const at::Tensor& width,
                                      const at::Tensor& offset, const std::optional<at::Tensor>& grid_index,
                                      double shift, double stop, double min_weight) {
  const c10::cuda::CUDAGuard guard(density.device());
  const RayTensors tensors = check_placed(density, semantics, points, t, interval, width, offset, grid_index);
  return forward(density, semantics, tensors.rays, {shift, stop, min_weight},
                 [&](auto number) { return packed_rays<decltype(number)>(tensors); });
}

GridOutputs volume_render_samples_backward_cuda(const at::Tensor& grad_depth, const at::Tensor& grad_semantics,
                                                const at::Tensor& grad_transmittance, const at::Tensor& grad_distortion,
                                                const at::Tensor& depth, const at::Tensor& rendered,
                                                const at::Tensor& transmittance, const at::Tensor& distortion,
                                                const at::Tensor& density, const at::Tensor& semantics,
                                                const at::Tensor& points, const at::Tensor& t,
                                                const at::Tensor& interval, const at::Tensor& width,
                                                const at::Tensor& offset, const std::optional<at::Tensor>& grid_index,
                                                double shift, double stop, double min_weight) {
  const c10::cuda::CUDAGuard guard(density.device());
  const RayTensors tensors = check_placed(density, semantics, points, t, interval, width, offset, grid_index);
  const RayValues grad = check_ray_values("grad", grad_depth, grad_semantics, grad_transmittance, grad_distortion,
                                          tensors.rays, semantics);
  const RayValues out = check_ray_values("output", depth, rendered, transmittance, distortion, tensors.rays, semantics);
  return backward(grad, out, density, semantics, tensors.rays, {shift, stop, min_weight},
                  [&](auto number) { return packed_rays<decltype(number)>(tensors); });
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("volume_render", &volume_render_cuda);
  m.impl("volume_render_backward", &volume_render_backward_cuda);
  m.impl("volume_render_samples", &volume_render_samples_cuda);
  m.impl("volume_render_samples_backward", &volume_render_samples_backward_cuda);
}

}  // namespace occforge
