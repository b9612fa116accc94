#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "render/ray_samples_check.h"

namespace occforge {
namespace {

std::tuple<at::Tensor, at::Tensor> clip_rays_cpu(const at::Tensor& origins_, const at::Tensor& directions_,
                                                 at::ArrayRef<double> lower, at::ArrayRef<double> upper, double near_,
                                                 double far_) {
  check_rays(origins_, directions_);
  const at::Tensor origins = origins_.contiguous(), directions = directions_.contiguous();
  const int64_t rays = directions.size(0);
  at::Tensor near = at::empty({rays}, directions.options()), far = at::empty({rays}, directions.options());
  AT_DISPATCH_FLOATING_TYPES(directions.scalar_type(), "clip_rays", [&] {
    const Box<scalar_t> box = check_box<scalar_t>(lower, upper);
    const auto *o = origins.const_data_ptr<scalar_t>(), *d = directions.const_data_ptr<scalar_t>();
    auto *entry = near.data_ptr<scalar_t>(), *exit = far.data_ptr<scalar_t>();
    at::parallel_for(0, rays, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        entry[r] = static_cast<scalar_t>(near_);
        exit[r] = static_cast<scalar_t>(far_);
        clip_to_box(box, o + 3 * r, d + 3 * r, entry[r], exit[r]);
      }
    });
  });
  return {near, far};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ray_samples_cpu(const at::Tensor& near_, const at::Tensor& step_,
                                                               const at::Tensor& counts_, double position,
                                                               const std::optional<at::Tensor>& seed) {
  check_sample_rows(near_, step_, counts_, seed);
  const at::Tensor near = near_.contiguous(), step = step_.contiguous(), counts = counts_.contiguous();
  const int64_t rays = counts.size(0);
  at::Tensor offset = at::empty({rays + 1}, counts.options());
  auto* starts = offset.data_ptr<int64_t>();
  const auto* count = counts.const_data_ptr<int64_t>();
  starts[0] = 0;
  for (int64_t r = 0; r < rays; ++r) {
    TORCH_CHECK_VALUE(count[r] >= 0 && count[r] <= (int64_t{1} << 40), "counts must be in 0..2^40, found ", count[r],
                      " for ray ", r);
    starts[r + 1] = starts[r] + count[r];
  }
  at::Tensor t = at::empty({starts[rays]}, near.options()), ray = at::empty({starts[rays]}, counts.options());
  const int64_t number = seed.has_value() ? *seed->const_data_ptr<int64_t>() : 0;
  AT_DISPATCH_FLOATING_TYPES(near.scalar_type(), "ray_samples", [&] {
    const auto *first = near.const_data_ptr<scalar_t>(), *spacing = step.const_data_ptr<scalar_t>();
    auto* places = t.data_ptr<scalar_t>();
    auto* ids = ray.data_ptr<int64_t>();
    at::parallel_for(0, rays, 256, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const SampleRow<scalar_t> row{first[r], spacing[r], static_cast<scalar_t>(position), seed.has_value(),
                                      ray_key(number, r)};
        for (int64_t i = 0; i < count[r]; ++i) {
          places[starts[r] + i] = row.at(i);
          ids[starts[r] + i] = r;
        }
      }
    });
  });
  return {t, ray, offset};
}

}  // namespace

TORCH_LIBRARY_IMPL(occforge, CPU, m) {
  m.impl("clip_rays", &clip_rays_cpu);
  m.impl("ray_samples", &ray_samples_cpu);
}

}  // namespace occforge
