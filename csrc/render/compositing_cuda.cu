#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda_launch.h"
#include "render/compositing_check.h"
#include "render/density_kernel.h"

namespace occforge {
namespace {

// A launch of one thread per item; nothing without items.
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t items, Arguments... arguments) {
  if (items == 0) return;
  kernel<<<blocks_of(items), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(items, arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
__global__ void alpha_kernel(int64_t samples, const T* density, const T* interval, int64_t step, T shift, const T* grad,
                             T* out) {
  const int64_t i = thread_number();
  if (i >= samples) return;
  const Opacity<T> found = opacity_of(density[i], shift, interval[i * step]);
  out[i] = grad == nullptr ? found.alpha : grad[i] * found.slope * (1 - found.alpha);
}

at::Tensor run_density(const at::Tensor* grad_, const at::Tensor& density_, const at::Tensor& interval_, double shift) {
  const int64_t step = check_density(density_, interval_);
  const c10::cuda::CUDAGuard guard(density_.device());
  const at::Tensor density = density_.contiguous(), interval = interval_.contiguous();
  at::Tensor grad;
  if (grad_ != nullptr) {
    check_ray_grad(*grad_, density.sizes(), density);
    grad = grad_->contiguous();
  }
  at::Tensor out = at::empty(density.sizes(), density.options());
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "density_alpha", [&] {
    launch(alpha_kernel<scalar_t>, density.numel(), density.const_data_ptr<scalar_t>(),
           interval.const_data_ptr<scalar_t>(), step, static_cast<scalar_t>(shift),
           grad_ != nullptr ? grad.const_data_ptr<scalar_t>() : nullptr, out.data_ptr<scalar_t>());
  });
  return out;
}

at::Tensor density_alpha_cuda(const at::Tensor& density, const at::Tensor& interval, double shift) {
  return run_density(nullptr, density, interval, shift);
}

at::Tensor density_alpha_backward_cuda(const at::Tensor& grad, const at::Tensor& density, const at::Tensor& interval,
                                       double shift) {
  return run_density(&grad, density, interval, shift);
}

// One thread a ray: the products along a ray are a chain.
template <typename T>
__global__ void weights_kernel(int64_t rays, int64_t samples, const T* alpha, const int64_t* offset, T stop, T* weights,
                               T* last) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const Span span = span_of(offset, r, samples);
  last[r] = composite(alpha, span.first, span.last, stop, weights);
}

template <typename T>
__global__ void weights_backward_kernel(int64_t rays, int64_t samples, const T* alpha, const int64_t* offset, T stop,
                                        const T* grad_weights, const T* grad_last, T* grad_alpha) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const Span span = span_of(offset, r, samples);
  composite_backward(alpha, span.first, span.last, stop, grad_weights, grad_last[r], grad_alpha);
}

std::tuple<at::Tensor, at::Tensor> alpha_weights_cuda(const at::Tensor& alpha_, const at::Tensor& offset_,
                                                      double stop) {
  const int64_t rays = check_packed("alpha", alpha_, offset_);
  const c10::cuda::CUDAGuard guard(alpha_.device());
  const at::Tensor alpha = alpha_.contiguous(), offset = offset_.contiguous();
  at::Tensor weights = at::zeros(alpha.sizes(), alpha.options()), last = at::empty({rays}, alpha.options());
  AT_DISPATCH_FLOATING_TYPES(alpha.scalar_type(), "alpha_weights", [&] {
    launch(weights_kernel<scalar_t>, rays, alpha.numel(), alpha.const_data_ptr<scalar_t>(),
           offset.const_data_ptr<int64_t>(), static_cast<scalar_t>(stop), weights.data_ptr<scalar_t>(),
           last.data_ptr<scalar_t>());
  });
  return {weights, last};
}

at::Tensor alpha_weights_backward_cuda(const at::Tensor& grad_weights_, const at::Tensor& grad_last_,
                                       const at::Tensor& alpha_, const at::Tensor& offset_, double stop) {
  const int64_t rays = check_packed("alpha", alpha_, offset_);
  check_weights_grad(grad_weights_, grad_last_, alpha_, rays);
  const c10::cuda::CUDAGuard guard(alpha_.device());
  const at::Tensor alpha = alpha_.contiguous(), offset = offset_.contiguous();
  const at::Tensor grad_weights = grad_weights_.contiguous(), grad_last = grad_last_.contiguous();
  at::Tensor out = at::zeros(alpha.sizes(), alpha.options());
  AT_DISPATCH_FLOATING_TYPES(alpha.scalar_type(), "alpha_weights_backward", [&] {
    launch(weights_backward_kernel<scalar_t>, rays, alpha.numel(), alpha.const_data_ptr<scalar_t>(),
           offset.const_data_ptr<int64_t>(), static_cast<scalar_t>(stop), grad_weights.const_data_ptr<scalar_t>(),
           grad_last.const_data_ptr<scalar_t>(), out.data_ptr<scalar_t>());
  });
  return out;
}

// One thread a ray and column.
template <typename T>
__global__ void sum_kernel(int64_t items, int64_t samples, int64_t columns, const T* weights, const T* values,
                           const int64_t* offset, T* out) {
  const int64_t k = thread_number();
  if (k >= items) return;
  const int64_t r = k / columns, c = k - r * columns;
  const Span span = span_of(offset, r, samples);
  T sum = 0;
  for (int64_t i = span.first; i < span.last; ++i) sum += weights[i] * values[i * columns + c];
  out[k] = sum;
}

// One thread a ray: samples of no ray keep the zeros they were given.
template <typename T>
__global__ void sum_backward_kernel(int64_t rays, int64_t samples, int64_t columns, const T* grad, const T* weights,
                                    const T* values, const int64_t* offset, T* grad_weights, T* grad_values) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const Span span = span_of(offset, r, samples);
  for (int64_t i = span.first; i < span.last; ++i) {
    T dot = 0;
    for (int64_t c = 0; c < columns; ++c) {
      dot += grad[r * columns + c] * values[i * columns + c];
      grad_values[i * columns + c] = grad[r * columns + c] * weights[i];
    }
    grad_weights[i] = dot;
  }
}

at::Tensor ray_sum_cuda(const at::Tensor& weights_, const at::Tensor& values_, const at::Tensor& offset_) {
  const int64_t rays = check_packed("weights", weights_, offset_);
  check_values(weights_, values_);
  const c10::cuda::CUDAGuard guard(weights_.device());
  const at::Tensor weights = weights_.contiguous(), values = values_.contiguous(), offset = offset_.contiguous();
  const int64_t columns = values.size(1);
  at::Tensor out = at::empty({rays, columns}, values.options());
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "ray_sum", [&] {
    launch(sum_kernel<scalar_t>, rays * columns, weights.numel(), columns, weights.const_data_ptr<scalar_t>(),
           values.const_data_ptr<scalar_t>(), offset.const_data_ptr<int64_t>(), out.data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> ray_sum_backward_cuda(const at::Tensor& grad_, const at::Tensor& weights_,
                                                         const at::Tensor& values_, const at::Tensor& offset_) {
  const int64_t rays = check_packed("weights", weights_, offset_);
  check_values(weights_, values_);
  const int64_t columns = values_.size(1);
  check_ray_grad(grad_, {rays, columns}, weights_);
  const c10::cuda::CUDAGuard guard(weights_.device());
  const at::Tensor weights = weights_.contiguous(), values = values_.contiguous(), offset = offset_.contiguous(),
                   grad = grad_.contiguous();
  at::Tensor grad_weights = at::zeros(weights.sizes(), weights.options());
  at::Tensor grad_values = at::zeros(values.sizes(), values.options());
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "ray_sum_backward", [&] {
    launch(sum_backward_kernel<scalar_t>, rays, weights.numel(), columns, grad.const_data_ptr<scalar_t>(),
           weights.const_data_ptr<scalar_t>(), values.const_data_ptr<scalar_t>(), offset.const_data_ptr<int64_t>(),
           grad_weights.data_ptr<scalar_t>(), grad_values.data_ptr<scalar_t>());
  });
  return {grad_weights, grad_values};
}

template <typename T>
__global__ void distortion_kernel(int64_t rays, int64_t samples, const T* weights, const T* t, const T* width,
                                  int64_t step, const int64_t* offset, T* out) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const Span span = span_of(offset, r, samples);
  out[r] = distortion_of<T, T>(weights, t, width, step, span.first, span.last);
}

template <typename T>
__global__ void distortion_backward_kernel(int64_t rays, int64_t samples, const T* grad, const T* weights, const T* t,
                                           const T* width, int64_t step, const int64_t* offset, T* out) {
  const int64_t r = thread_number();
  if (r >= rays) return;
  const Span span = span_of(offset, r, samples);
  distortion_backward(weights, t, width, step, span.first, span.last, grad[r], out);
}

at::Tensor ray_distortion_cuda(const at::Tensor& weights_, const at::Tensor& t_, const at::Tensor& width_,
                               const at::Tensor& offset_) {
  const int64_t rays = check_packed("weights", weights_, offset_), step = check_distortion(weights_, t_, width_);
  const c10::cuda::CUDAGuard guard(weights_.device());
  const at::Tensor weights = weights_.contiguous(), t = t_.contiguous(), width = width_.contiguous(),
                   offset = offset_.contiguous();
  at::Tensor out = at::empty({rays}, weights.options());
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "ray_distortion", [&] {
    launch(distortion_kernel<scalar_t>, rays, weights.numel(), weights.const_data_ptr<scalar_t>(),
           t.const_data_ptr<scalar_t>(), width.const_data_ptr<scalar_t>(), step, offset.const_data_ptr<int64_t>(),
           out.data_ptr<scalar_t>());
  });
  return out;
}

at::Tensor ray_distortion_backward_cuda(const at::Tensor& grad_, const at::Tensor& weights_, const at::Tensor& t_,
                                        const at::Tensor& width_, const at::Tensor& offset_) {
  const int64_t rays = check_packed("weights", weights_, offset_), step = check_distortion(weights_, t_, width_);
  check_ray_grad(grad_, {rays}, weights_);
  const c10::cuda::CUDAGuard guard(weights_.device());
  const at::Tensor weights = weights_.contiguous(), t = t_.contiguous(), width = width_.contiguous(),
                   offset = offset_.contiguous(), grad = grad_.contiguous();
  at::Tensor out = at::zeros(weights.sizes(), weights.options());
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "ray_distortion_backward", [&] {
    launch(distortion_backward_kernel<scalar_t>, rays, weights.numel(), grad.const_data_ptr<scalar_t>(),
           weights.const_data_ptr<scalar_t>(), t.const_data_ptr<scalar_t>(), width.const_data_ptr<scalar_t>(), step,
           offset.const_data_ptr<int64_t>(), out.data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CUDA, m) {
  m.impl("density_alpha", &density_alpha_cuda);
  m.impl("density_alpha_backward", &density_alpha_backward_cuda);
  m.impl("alpha_weights", &alpha_weights_cuda);
  m.impl("alpha_weights_backward", &alpha_weights_backward_cuda);
  m.impl("ray_sum", &ray_sum_cuda);
  m.impl("ray_sum_backward", &ray_sum_backward_cuda);
  m.impl("ray_distortion", &ray_distortion_cuda);
  m.impl("ray_distortion_backward", &ray_distortion_backward_cuda);
}

}  // namespace occforge
