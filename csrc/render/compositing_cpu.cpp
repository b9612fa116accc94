#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "render/compositing_check.h"
#include "render/density_kernel.h"

namespace occforge {
namespace {

constexpr int64_t kSampleGrain = 16384, kRayGrain = 64;

// ---------------------------------------------------------------------------------------------------------------------
// Density

template <typename T>
OCC_HD void alpha_loop(const T* density, const T* interval, int64_t step, T shift, int64_t begin, int64_t end,
                       const T* grad, T* out) {
  if (grad == nullptr) {
    for (int64_t i = begin; i < end; ++i) out[i] = opacity_of(density[i], shift, interval[i * step]).alpha;
  } else {
    for (int64_t i = begin; i < end; ++i) {
      const Opacity<T> found = opacity_of(density[i], shift, interval[i * step]);
      out[i] = grad[i] * found.slope * (1 - found.alpha);
    }
  }
}

// With `grad` the gradient of the density, without it alpha.
OCC_CLONES void alpha_range(const float* density, const float* interval, int64_t step, float shift, int64_t begin,
                            int64_t end, const float* grad, float* out) {
  alpha_loop(density, interval, step, shift, begin, end, grad, out);
}
OCC_CLONES void alpha_range(const double* density, const double* interval, int64_t step, double shift, int64_t begin,
                            int64_t end, const double* grad, double* out) {
  alpha_loop(density, interval, step, shift, begin, end, grad, out);
}

at::Tensor run_density(const at::Tensor* grad_, const at::Tensor& density_, const at::Tensor& interval_, double shift) {
  const int64_t step = check_density(density_, interval_);
  const at::Tensor density = density_.contiguous(), interval = interval_.contiguous();
  at::Tensor grad;
  if (grad_ != nullptr) {
    check_ray_grad(*grad_, density.sizes(), density);
    grad = grad_->contiguous();
  }
  at::Tensor out = at::empty(density.sizes(), density.options());
  AT_DISPATCH_FLOATING_TYPES(density.scalar_type(), "density_alpha", [&] {
    const auto *from = density.const_data_ptr<scalar_t>(), *lengths = interval.const_data_ptr<scalar_t>();
    const auto* upstream = grad_ != nullptr ? grad.const_data_ptr<scalar_t>() : nullptr;
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, density.numel(), kSampleGrain, [&](int64_t begin, int64_t end) {
      alpha_range(from, lengths, step, static_cast<scalar_t>(shift), begin, end, upstream, to);
    });
  });
  return out;
}

at::Tensor density_alpha_cpu(const at::Tensor& density, const at::Tensor& interval, double shift) {
  return run_density(nullptr, density, interval, shift);
}

at::Tensor density_alpha_backward_cpu(const at::Tensor& grad, const at::Tensor& density, const at::Tensor& interval,
                                      double shift) {
  return run_density(&grad, density, interval, shift);
}

// ---------------------------------------------------------------------------------------------------------------------
// Along the rays

int64_t check_offsets(const char* name, const at::Tensor& samples, const at::Tensor& offset) {
  const int64_t rays = check_packed(name, samples, offset);
  const auto* starts = offset.const_data_ptr<int64_t>();
  bool good = starts[0] == 0 && starts[rays] == samples.size(0);
  for (int64_t r = 0; r < rays; ++r) good &= starts[r] <= starts[r + 1];
  TORCH_CHECK_VALUE(good, "offset must ascend from 0 to the number of samples, ", samples.size(0));
  return rays;
}

std::tuple<at::Tensor, at::Tensor> alpha_weights_cpu(const at::Tensor& alpha_, const at::Tensor& offset_, double stop) {
  const at::Tensor alpha = alpha_.contiguous(), offset = offset_.contiguous();
  const int64_t rays = check_offsets("alpha", alpha, offset);
  at::Tensor weights = at::empty(alpha.sizes(), alpha.options()), last = at::empty({rays}, alpha.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(alpha.scalar_type(), "alpha_weights", [&] {
    const auto* from = alpha.const_data_ptr<scalar_t>();
    auto *to = weights.data_ptr<scalar_t>(), *left = last.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        left[r] = composite(from, starts[r], starts[r + 1], static_cast<scalar_t>(stop), to);
      }
    });
  });
  return {weights, last};
}

at::Tensor alpha_weights_backward_cpu(const at::Tensor& grad_weights_, const at::Tensor& grad_last_,
                                      const at::Tensor& alpha_, const at::Tensor& offset_, double stop) {
  const at::Tensor alpha = alpha_.contiguous(), offset = offset_.contiguous();
  const int64_t rays = check_offsets("alpha", alpha, offset);
  check_weights_grad(grad_weights_, grad_last_, alpha, rays);
  const at::Tensor grad_weights = grad_weights_.contiguous(), grad_last = grad_last_.contiguous();
  at::Tensor out = at::empty(alpha.sizes(), alpha.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(alpha.scalar_type(), "alpha_weights_backward", [&] {
    const auto *from = alpha.const_data_ptr<scalar_t>(), *upstream = grad_weights.const_data_ptr<scalar_t>(),
               *last = grad_last.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        composite_backward(from, starts[r], starts[r + 1], static_cast<scalar_t>(stop), upstream, last[r], to);
      }
    });
  });
  return out;
}

at::Tensor ray_sum_cpu(const at::Tensor& weights_, const at::Tensor& values_, const at::Tensor& offset_) {
  const at::Tensor weights = weights_.contiguous(), values = values_.contiguous(), offset = offset_.contiguous();
  const int64_t rays = check_offsets("weights", weights, offset);
  check_values(weights, values);
  const int64_t columns = values.size(1);
  at::Tensor out = at::zeros({rays, columns}, values.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "ray_sum", [&] {
    const auto *w = weights.const_data_ptr<scalar_t>(), *v = values.const_data_ptr<scalar_t>();
    auto* sums = out.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        scalar_t* row = sums + r * columns;
        for (int64_t i = starts[r]; i < starts[r + 1]; ++i) {
          for (int64_t c = 0; c < columns; ++c) row[c] += w[i] * v[i * columns + c];
        }
      }
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> ray_sum_backward_cpu(const at::Tensor& grad_, const at::Tensor& weights_,
                                                        const at::Tensor& values_, const at::Tensor& offset_) {
  const at::Tensor weights = weights_.contiguous(), values = values_.contiguous(), offset = offset_.contiguous();
  const int64_t rays = check_offsets("weights", weights, offset);
  check_values(weights, values);
  const int64_t columns = values.size(1);
  check_ray_grad(grad_, {rays, columns}, weights);
  const at::Tensor grad = grad_.contiguous();
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  at::Tensor grad_values = at::empty(values.sizes(), values.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "ray_sum_backward", [&] {
    const auto *w = weights.const_data_ptr<scalar_t>(), *v = values.const_data_ptr<scalar_t>(),
               *g = grad.const_data_ptr<scalar_t>();
    auto *to_weights = grad_weights.data_ptr<scalar_t>(), *to_values = grad_values.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const scalar_t* row = g + r * columns;
        for (int64_t i = starts[r]; i < starts[r + 1]; ++i) {
          scalar_t dot = 0;
          for (int64_t c = 0; c < columns; ++c) {
            dot += row[c] * v[i * columns + c];
            to_values[i * columns + c] = row[c] * w[i];
          }
          to_weights[i] = dot;
        }
      }
    });
  });
  return {grad_weights, grad_values};
}

at::Tensor ray_distortion_cpu(const at::Tensor& weights_, const at::Tensor& t_, const at::Tensor& width_,
                              const at::Tensor& offset_) {
  const at::Tensor weights = weights_.contiguous(), t = t_.contiguous(), width = width_.contiguous(),
                   offset = offset_.contiguous();
  const int64_t rays = check_offsets("weights", weights, offset), step = check_distortion(weights, t, width);
  at::Tensor out = at::empty({rays}, weights.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "ray_distortion", [&] {
    const auto *w = weights.const_data_ptr<scalar_t>(), *m = t.const_data_ptr<scalar_t>(),
               *delta = width.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        to[r] = distortion_of<scalar_t, scalar_t>(w, m, delta, step, starts[r], starts[r + 1]);
      }
    });
  });
  return out;
}

at::Tensor ray_distortion_backward_cpu(const at::Tensor& grad_, const at::Tensor& weights_, const at::Tensor& t_,
                                       const at::Tensor& width_, const at::Tensor& offset_) {
  const at::Tensor weights = weights_.contiguous(), t = t_.contiguous(), width = width_.contiguous(),
                   offset = offset_.contiguous();
  const int64_t rays = check_offsets("weights", weights, offset), step = check_distortion(weights, t, width);
  check_ray_grad(grad_, {rays}, weights);
  const at::Tensor grad = grad_.contiguous();
  at::Tensor out = at::empty(weights.sizes(), weights.options());
  const auto* starts = offset.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(weights.scalar_type(), "ray_distortion_backward", [&] {
    const auto *w = weights.const_data_ptr<scalar_t>(), *m = t.const_data_ptr<scalar_t>(),
               *delta = width.const_data_ptr<scalar_t>(), *g = grad.const_data_ptr<scalar_t>();
    auto* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, rays, kRayGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        distortion_backward(w, m, delta, step, starts[r], starts[r + 1], g[r], to);
      }
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("density_alpha", &density_alpha_cpu);
  m.impl("density_alpha_backward", &density_alpha_backward_cpu);
  m.impl("alpha_weights", &alpha_weights_cpu);
  m.impl("alpha_weights_backward", &alpha_weights_backward_cpu);
  m.impl("ray_sum", &ray_sum_cpu);
  m.impl("ray_sum_backward", &ray_sum_backward_cpu);
  m.impl("ray_distortion", &ray_distortion_cpu);
  m.impl("ray_distortion_backward", &ray_distortion_backward_cpu);
}

}  // namespace occforge
