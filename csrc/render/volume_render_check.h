// What the CPU and the CUDA entries of volume rendering check alike, and the arguments they share.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "render/compositing_check.h"
#include "render/ray_samples_check.h"
#include "render/volume_render_kernel.h"

namespace occforge {

constexpr int64_t kMostSamples = int64_t{1} << 24;  // of one ray

inline void check_grids(const at::Tensor& density, const at::Tensor& semantics) {
  TORCH_CHECK_VALUE(density.dim() == 4, "density must be (B, X, Y, Z), found ", density.sizes());
  TORCH_CHECK_VALUE(semantics.dim() == 5 && semantics.sizes().slice(0, 4) == density.sizes(),
                    "semantics must be (B, X, Y, Z, C) of the size of density, found ", semantics.sizes(), " and ",
                    density.sizes());
  TORCH_CHECK_TYPE(density.scalar_type() == at::kFloat || density.scalar_type() == at::kDouble,
                   "density must be float32 or float64, found ", density.scalar_type());
  check_beside("semantics", semantics, density);
  int64_t cells = 1;
  for (int axis = 1; axis < 4; ++axis) {
    TORCH_CHECK_VALUE(density.size(axis) > 0 && density.size(axis) < (int64_t{1} << 20),
                      "density must have 1..2^20 - 1 cells along each axis, found ", density.sizes());
    cells *= density.size(axis);
  }
  TORCH_CHECK_VALUE(cells < (int64_t{1} << 31), "a grid must have less than 2^31 cells, found ", density.sizes());
}

inline void check_grid_index(const std::optional<at::Tensor>& grid_index, int64_t rays, int64_t grids,
                             const at::Tensor& density) {
  if (!grid_index.has_value()) {
    TORCH_CHECK_VALUE(grids == 1 || rays == 0, "grid_index must be given with ", grids, " grids");
    return;
  }
  TORCH_CHECK_TYPE(grid_index->scalar_type() == at::kLong, "grid_index must be int64, found ",
                   grid_index->scalar_type());
  TORCH_CHECK_VALUE(grid_index->dim() == 1 && grid_index->size(0) == rays, "grid_index must be (", rays, ",), found ",
                    grid_index->sizes());
  TORCH_CHECK_VALUE(grid_index->device() == density.device(), "grid_index must be on the device of density");
}

// The tensors behind the pointers of RegularRays or PackedRays, contiguous.
struct RayTensors {
  at::Tensor a, b, interval, width, offset;
  std::optional<at::Tensor> grid_index, seed;
  int64_t rays;
};

inline const int64_t* numbers(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<int64_t>() : nullptr;
}

struct RegularArguments {
  at::ArrayRef<double> lower, voxel_size;
  double near, far, step;
  int64_t count;
  double position, unit;
};

inline RayTensors check_regular(const at::Tensor& density, const at::Tensor& semantics, const at::Tensor& origins,
                                const at::Tensor& directions, const std::optional<at::Tensor>& grid_index,
                                const std::optional<at::Tensor>& seed, const RegularArguments& a) {
  check_grids(density, semantics);
  check_rays(origins, directions);
  check_beside("directions", directions, density);
  check_grid_index(grid_index, directions.size(0), density.size(0), density);
  check_seed(seed, directions);
  TORCH_CHECK_VALUE(a.lower.size() == 3 && a.voxel_size.size() == 3,
                    "lower and voxel_size must have 3 numbers (x, y, z)");
  double diagonal = 0;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(std::isfinite(a.lower[axis]), "lower must be finite, found ", a.lower);
    TORCH_CHECK_VALUE(std::isfinite(a.voxel_size[axis]) && a.voxel_size[axis] > 0,
                      "voxel_size must be finite and above 0, found ", a.voxel_size);
    const double edge = a.voxel_size[axis] * static_cast<double>(density.size(axis + 1));
    diagonal += edge * edge;
  }
  TORCH_CHECK_VALUE(std::isfinite(a.near) && a.near <= a.far, "near must be finite and not above far, found ", a.near,
                    " and ", a.far);
  TORCH_CHECK_VALUE((a.step > 0) != (a.count > 0) && std::isfinite(a.step) && a.step >= 0 && a.count >= 0,
                    "either step or count must be above 0, found ", a.step, " and ", a.count);
  TORCH_CHECK_VALUE(
      a.count <= kMostSamples && (a.step == 0 || std::sqrt(diagonal) < a.step * static_cast<double>(kMostSamples - 1)),
      "a ray may have up to 2^24 samples, found step ", a.step, ", count ", a.count);
  TORCH_CHECK_VALUE(a.position >= 0 && a.position <= 1, "position must be in 0..1, found ", a.position);
  TORCH_CHECK_VALUE(std::isfinite(a.unit) && a.unit > 0, "unit must be finite and above 0, found ", a.unit);
  RayTensors out{origins.contiguous(), directions.contiguous(), {}, {}, {}, {}, seed, directions.size(0)};
  if (grid_index.has_value()) out.grid_index = grid_index->contiguous();
  return out;
}

template <typename T>
RegularRays<T> regular_rays(const RayTensors& tensors, const at::Tensor& density, const RegularArguments& a) {
  RegularRays<T> rays;
  rays.origins = tensors.a.const_data_ptr<T>();
  rays.directions = tensors.b.const_data_ptr<T>();
  rays.grid_index = numbers(tensors.grid_index);
  rays.seed = numbers(tensors.seed);
  for (int axis = 0; axis < 3; ++axis) {
    rays.lower[axis] = rays.box.lower[axis] = static_cast<T>(a.lower[axis]);
    rays.voxel_size[axis] = static_cast<T>(a.voxel_size[axis]);
    rays.box.upper[axis] =
        static_cast<T>(a.lower[axis] + a.voxel_size[axis] * static_cast<double>(density.size(axis + 1)));
  }
  rays.near = static_cast<T>(a.near);
  rays.far = static_cast<T>(a.far);
  rays.step = static_cast<T>(a.step);
  rays.position = static_cast<T>(a.position);
  rays.unit = static_cast<T>(a.unit);
  rays.count = a.count;
  return rays;
}

inline RayTensors check_placed(const at::Tensor& density, const at::Tensor& semantics, const at::Tensor& points,
                               const at::Tensor& t, const at::Tensor& interval, const at::Tensor& width,
                               const at::Tensor& offset, const std::optional<at::Tensor>& grid_index) {
  check_grids(density, semantics);
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 3, "points must be (M, 3), found ", points.sizes());
  check_beside("points", points, density);
  const int64_t rays = check_packed("t", t, offset);
  TORCH_CHECK_VALUE(t.size(0) == points.size(0), "t must be (", points.size(0), ",), found ", t.sizes());
  check_beside("t", t, density);
  check_per_sample("interval", interval, t);
  check_per_sample("width", width, t);
  check_grid_index(grid_index, rays, density.size(0), density);
  RayTensors out{points.contiguous(),
                 t.contiguous(),
                 interval.contiguous(),
                 width.contiguous(),
                 offset.contiguous(),
                 {},
                 {},
                 rays};
  if (grid_index.has_value()) out.grid_index = grid_index->contiguous();
  return out;
}

template <typename T>
PackedRays<T> packed_rays(const RayTensors& tensors) {
  return {tensors.a.const_data_ptr<T>(),
          tensors.b.const_data_ptr<T>(),
          tensors.interval.const_data_ptr<T>(),
          tensors.width.const_data_ptr<T>(),
          tensors.interval.size(0) == 1 ? 0 : 1,
          tensors.width.size(0) == 1 ? 0 : 1,
          tensors.b.size(0),
          tensors.offset.const_data_ptr<int64_t>(),
          numbers(tensors.grid_index)};
}

// Depth (R,), semantics (R, C), transmittance (R,), distortion (R,): outputs, or their upstream gradients.
struct RayValues {
  at::Tensor depth, semantics, transmittance, distortion;
};

template <typename T>
struct RayPointers {
  T *depth, *semantics, *transmittance, *distortion;
};

inline RayValues check_ray_values(const char* name, const at::Tensor& depth, const at::Tensor& semantics,
                                  const at::Tensor& transmittance, const at::Tensor& distortion, int64_t rays,
                                  const at::Tensor& grid) {
  for (const at::Tensor& value : {depth, transmittance, distortion}) {
    TORCH_CHECK_VALUE(value.dim() == 1 && value.size(0) == rays, name, " must be (", rays, ",), found ", value.sizes());
    check_beside(name, value, grid);
  }
  TORCH_CHECK_VALUE(semantics.dim() == 2 && semantics.size(0) == rays && semantics.size(1) == grid.size(4), name,
                    " of semantics must be (", rays, ", ", grid.size(4), "), found ", semantics.sizes());
  check_beside(name, semantics, grid);
  return {depth.contiguous(), semantics.contiguous(), transmittance.contiguous(), distortion.contiguous()};
}

template <typename T>
RayPointers<const T> const_pointers(const RayValues& values) {
  return {values.depth.const_data_ptr<T>(), values.semantics.const_data_ptr<T>(),
          values.transmittance.const_data_ptr<T>(), values.distortion.const_data_ptr<T>()};
}

template <typename T>
RayPointers<T> pointers(const RayValues& values) {
  return {values.depth.data_ptr<T>(), values.semantics.data_ptr<T>(), values.transmittance.data_ptr<T>(),
          values.distortion.data_ptr<T>()};
}

}  // namespace occforge
