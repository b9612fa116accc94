#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "voxel/deform_attn_check.h"

namespace occforge {
namespace {

// The queries of each image in their own order: those of image n are query[first[n]] ... query[first[n + 1] - 1].
struct QueriesByImage {
  std::vector<int64_t> first, query;
};

QueriesByImage group_queries(const at::Tensor& sample, int64_t images) {
  const auto* image = sample.const_data_ptr<int64_t>();
  const int64_t queries = sample.size(0);
  QueriesByImage out{std::vector<int64_t>(images + 1, 0), std::vector<int64_t>(queries)};
  for (int64_t q = 0; q < queries; ++q) {
    TORCH_CHECK_VALUE(image[q] >= 0 && image[q] < images, "sample must be in 0..", images - 1, ", found ", image[q]);
    ++out.first[image[q] + 1];
  }
  for (int64_t n = 0; n < images; ++n) out.first[n + 1] += out.first[n];
  std::vector<int64_t> next(out.first.begin(), out.first.end() - 1);
  for (int64_t q = 0; q < queries; ++q) out.query[next[image[q]]++] = q;
  return out;
}

template <typename scalar_t>
struct AttnArguments {
  AttnShape shape;
  const scalar_t *value, *locations, *weights;
};

// ---------------------------------------------------------------------------------------------------------------------
// Forward: heads begin ... end - 1 of all queries, counted through. `zeros` stands for a row outside the map.

template <typename scalar_t>
OCC_HD void attend(const AttnArguments<scalar_t>& a, const int64_t* sample, const scalar_t* zeros, int64_t begin,
                   int64_t end, scalar_t* result) {
  const int64_t channels = a.shape.channels, stride = a.shape.heads * channels;
  for (int64_t i = begin; i < end; ++i) {
    const scalar_t* image = a.value + sample[i / a.shape.heads] * a.shape.sites * stride + i % a.shape.heads * channels;
    scalar_t* __restrict out = result + i * channels;
    std::fill(out, out + channels, scalar_t(0));
    for (int64_t l = 0; l < a.shape.levels; ++l) {
      for (int64_t j = (i * a.shape.levels + l) * a.shape.points, p = 0; p < a.shape.points; ++p, ++j) {
        Footprint<scalar_t> at;
        if (!find_footprint(a.shape.level[l], a.locations[2 * j], a.locations[2 * j + 1], at)) continue;
        const scalar_t* __restrict row[4];
        scalar_t share[4];
        for (int k = 0; k < 4; ++k) {
          row[k] = at.row[k] < 0 ? zeros : image + at.row[k] * stride;
          share[k] = at.share[k] * a.weights[j];
        }
        for (int64_t c = 0; c < channels; ++c) {
          out[c] += share[0] * row[0][c] + share[1] * row[1][c] + share[2] * row[2][c] + share[3] * row[3][c];
        }
      }
    }
  }
}

OCC_CLONES void attend_range(const AttnArguments<float>& a, const int64_t* sample, const float* zeros, int64_t begin,
                             int64_t end, float* out) {
  attend(a, sample, zeros, begin, end, out);
}
OCC_CLONES void attend_range(const AttnArguments<double>& a, const int64_t* sample, const double* zeros, int64_t begin,
                             int64_t end, double* out) {
  attend(a, sample, zeros, begin, end, out);
}

at::Tensor deform_attn_cpu(const at::Tensor& value_, const at::Tensor& locations_, const at::Tensor& weights_,
                           const at::Tensor& sample_, at::ArrayRef<int64_t> shapes) {
  const AttnShape shape = check_attn(value_, locations_, weights_, sample_, shapes);
  const at::Tensor sample = sample_.contiguous();
  const auto* samples = sample.const_data_ptr<int64_t>();
  for (int64_t q = 0; q < shape.queries; ++q) {
    TORCH_CHECK_VALUE(samples[q] >= 0 && samples[q] < shape.images, "sample must be in 0..", shape.images - 1,
                      ", found ", samples[q]);
  }
  at::Tensor result;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value_.scalar_type(), "deform_attn", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto dtype = c10::CppTypeToScalarType<acc_t>::value;
    const at::Tensor value = value_.contiguous().to(dtype), locations = locations_.contiguous().to(dtype);
    const at::Tensor weights = weights_.contiguous().to(dtype);
    at::Tensor out = at::empty({shape.queries, shape.heads * shape.channels}, value.options());
    const AttnArguments<acc_t> arguments{shape, value.const_data_ptr<acc_t>(), locations.const_data_ptr<acc_t>(),
                                         weights.const_data_ptr<acc_t>()};
    const std::vector<acc_t> zeros(shape.channels, 0);
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, shape.levels * shape.points));
    at::parallel_for(0, shape.queries * shape.heads, grain, [&](int64_t begin, int64_t end) {
      attend_range(arguments, samples, zeros.data(), begin, end, out.data_ptr<acc_t>());
    });
    result = out.to(value_.scalar_type());
  });
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward: the gradient of one image's head is written by one thread, query after query in their own order, so that
// it is the same whatever the number of threads. `zeros` and `spare` stand for rows outside the map.

template <typename scalar_t>
struct AttnGradients {
  const scalar_t* grad;
  scalar_t *value, *locations, *weights;
};

template <typename scalar_t>
OCC_HD void spread(const AttnArguments<scalar_t>& a, const AttnGradients<scalar_t>& g, int64_t image, int64_t head,
                   const int64_t* query, int64_t queries, const scalar_t* zeros, scalar_t* spare) {
  const int64_t channels = a.shape.channels, stride = a.shape.heads * channels;
  const int64_t origin = image * a.shape.sites * stride + head * channels;
  for (int64_t n = 0; n < queries; ++n) {
    const int64_t i = query[n] * a.shape.heads + head;
    const scalar_t* __restrict upstream = g.grad + i * channels;
    for (int64_t l = 0; l < a.shape.levels; ++l) {
      const MapLevel& level = a.shape.level[l];
      for (int64_t j = (i * a.shape.levels + l) * a.shape.points, p = 0; p < a.shape.points; ++p, ++j) {
        Footprint<scalar_t> at;
        if (!find_footprint(level, a.locations[2 * j], a.locations[2 * j + 1], at)) continue;
        const scalar_t* __restrict row[4];
        scalar_t* target[4];
        scalar_t share[4];
        for (int k = 0; k < 4; ++k) {
          row[k] = at.row[k] < 0 ? zeros : a.value + origin + at.row[k] * stride;
          target[k] = at.row[k] < 0 ? spare : g.value + origin + at.row[k] * stride;
          share[k] = at.share[k] * a.weights[j];
        }
        scalar_t dot[4] = {0, 0, 0, 0};
        for (int64_t c = 0; c < channels; ++c) {
          for (int k = 0; k < 4; ++k) dot[k] += upstream[c] * row[k][c];
        }
        for (int k = 0; k < 4; ++k) {
          scalar_t* __restrict sum = target[k];
          for (int64_t c = 0; c < channels; ++c) sum[c] += share[k] * upstream[c];
        }
        scalar_t weight = 0, by_x = 0, by_y = 0;
        for (int k = 0; k < 4; ++k) {
          weight += at.share[k] * dot[k];
          by_x += at.by_x[k] * dot[k];
          by_y += at.by_y[k] * dot[k];
        }
        g.weights[j] = weight;
        g.locations[2 * j] = by_x * a.weights[j] * static_cast<scalar_t>(level.width);
        g.locations[2 * j + 1] = by_y * a.weights[j] * static_cast<scalar_t>(level.height);
      }
    }
  }
}

OCC_CLONES void spread_head(const AttnArguments<float>& a, const AttnGradients<float>& g, int64_t image, int64_t head,
                            const int64_t* query, int64_t queries, const float* zeros, float* spare) {
  spread(a, g, image, head, query, queries, zeros, spare);
}
OCC_CLONES void spread_head(const AttnArguments<double>& a, const AttnGradients<double>& g, int64_t image, int64_t head,
                            const int64_t* query, int64_t queries, const double* zeros, double* spare) {
  spread(a, g, image, head, query, queries, zeros, spare);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> deform_attn_backward_cpu(
    const at::Tensor& grad_, const at::Tensor& value_, const at::Tensor& locations_, const at::Tensor& weights_,
    const at::Tensor& sample, at::ArrayRef<int64_t> shapes) {
  const AttnShape shape = check_attn(value_, locations_, weights_, sample, shapes);
  check_attn_grad(grad_, value_, shape);
  const QueriesByImage groups = group_queries(sample.contiguous(), shape.images);
  at::Tensor grad_value, grad_locations, grad_weights;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value_.scalar_type(), "deform_attn_backward", [&] {
    using acc_t = at::opmath_type<scalar_t>;
    const auto dtype = c10::CppTypeToScalarType<acc_t>::value;
    const at::Tensor grad = grad_.contiguous().to(dtype), value = value_.contiguous().to(dtype);
    const at::Tensor locations = locations_.contiguous().to(dtype), weights = weights_.contiguous().to(dtype);
    grad_value = at::zeros(value.sizes(), value.options());
    grad_locations = at::zeros(locations.sizes(), value.options());  // places outside are passed over
    grad_weights = at::zeros(weights.sizes(), value.options());
    const AttnArguments<acc_t> arguments{shape, value.const_data_ptr<acc_t>(), locations.const_data_ptr<acc_t>(),
                                         weights.const_data_ptr<acc_t>()};
    const AttnGradients<acc_t> gradients{grad.const_data_ptr<acc_t>(), grad_value.data_ptr<acc_t>(),
                                         grad_locations.data_ptr<acc_t>(), grad_weights.data_ptr<acc_t>()};
    at::parallel_for(0, shape.images * shape.heads, 1, [&](int64_t begin, int64_t end) {
      const std::vector<acc_t> zeros(shape.channels, 0);
      std::vector<acc_t> spare(shape.channels, 0);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / shape.heads, first = groups.first[image];
        spread_head(arguments, gradients, image, task % shape.heads, groups.query.data() + first,
                    groups.first[image + 1] - first, zeros.data(), spare.data());
      }
    });
    grad_value = grad_value.to(value_.scalar_type());
    grad_locations = grad_locations.to(value_.scalar_type());
    grad_weights = grad_weights.to(value_.scalar_type());
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("deform_attn", &deform_attn_cpu);
  m.impl("deform_attn_backward", &deform_attn_backward_cpu);
}

}  // namespace occforge
