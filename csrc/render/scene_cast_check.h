// What the CPU and the CUDA entry of scene casting do alike: check the arguments, lay out inputs and results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "scene_cast_kernel.h"

namespace occforge {

struct SceneCall {
  at::Tensor primitives, bounds, links, order, heights, maxima, origins, directions;  // contiguous
  at::Tensor primitive, distance, normal, uv, face;                                   // results
  scene::Tree tree;
  scene::Ground ground;
  int64_t rays, step;  // step: numbers from one origin to the next, 0 where all rays share one

  // Where the hits are written.
  scene::HitRows rows() const {
    return {primitive.mutable_data_ptr<int32_t>(), distance.mutable_data_ptr<double>(),
            normal.mutable_data_ptr<float>(),      uv.mutable_data_ptr<float>(),
            face.mutable_data_ptr<uint8_t>(),      face.numel() == 0};
  }

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> results() const {
    return {primitive, distance, normal, uv, face};
  }
};

inline void check_table(const char* name, const at::Tensor& table, at::ScalarType dtype, int64_t columns,
                        const at::Tensor& directions) {
  TORCH_CHECK_VALUE(table.dim() == 2 && (columns < 0 || table.size(1) == columns), name, " must be (*, ",
                    columns < 0 ? "*" : std::to_string(columns), "), found ", table.sizes());
  TORCH_CHECK_TYPE(table.scalar_type() == dtype, name, " must be ", dtype, ", found ", table.scalar_type());
  TORCH_CHECK_VALUE(table.device() == directions.device(), name, " must be on the device of directions");
}

// With any_hit, a visibility question, normal, uv and face come back empty.
inline SceneCall scene_call(const at::Tensor& primitives, const at::Tensor& bounds, const at::Tensor& links,
                            const at::Tensor& order, const at::Tensor& heights, const at::Tensor& maxima, double x0,
                            double y0, double cell, double top, const at::Tensor& origins, const at::Tensor& directions,
                            bool any_hit) {
  check_table("primitives", primitives, at::kDouble, scene::kStride, directions);
  check_table("bounds", bounds, at::kFloat, 6, directions);
  check_table("links", links, at::kInt, 2, directions);
  check_table("heights", heights, at::kFloat, -1, directions);
  check_table("maxima", maxima, at::kFloat, -1, directions);
  check_table("origins", origins, at::kDouble, 3, directions);
  check_table("directions", directions, at::kDouble, 3, directions);
  TORCH_CHECK_TYPE(order.scalar_type() == at::kInt, "order must be int32, found ", order.scalar_type());
  TORCH_CHECK_VALUE(order.dim() == 1 && order.size(0) == primitives.size(0) && order.device() == directions.device(),
                    "order must be (", primitives.size(0), ",) on the device of directions, found ", order.sizes());
  TORCH_CHECK_VALUE(bounds.size(0) == links.size(0), "bounds and links must have one row a node, found ",
                    bounds.sizes(), " and ", links.sizes());
  TORCH_CHECK_VALUE(origins.size(0) == 1 || origins.size(0) == directions.size(0), "origins must be 1 or ",
                    directions.size(0), ", found ", origins.size(0));
  if (heights.numel() > 0) {
    TORCH_CHECK_VALUE(std::isfinite(x0) && std::isfinite(y0) && std::isfinite(cell) && cell > 0,
                      "the ground needs a finite corner and a cell above 0, found ", x0, ", ", y0, " and ", cell);
    const auto tiles = [](int64_t nodes) { return nodes < 2 ? int64_t{0} : (nodes - 2 + scene::kTile) / scene::kTile; };
    const int64_t rows = tiles(heights.size(0)), columns = tiles(heights.size(1));
    TORCH_CHECK_VALUE(rows * columns == 0 || (maxima.size(0) == rows && maxima.size(1) == columns), "maxima must be (",
                      rows, ", ", columns, ") for these heights, found ", maxima.sizes());
  }
  SceneCall call{primitives.contiguous(), bounds.contiguous(), links.contiguous(),   order.contiguous(),
                 heights.contiguous(),    maxima.contiguous(), origins.contiguous(), directions.contiguous()};
  call.tree = {call.primitives.const_data_ptr<double>(),
               call.bounds.const_data_ptr<float>(),
               call.links.const_data_ptr<int32_t>(),
               call.order.const_data_ptr<int32_t>(),
               bounds.size(0),
               primitives.size(0)};
  if (heights.numel() > 0) {
    call.ground = {call.heights.const_data_ptr<float>(),
                   call.maxima.const_data_ptr<float>(),
                   heights.size(0),
                   heights.size(1),
                   x0,
                   y0,
                   cell,
                   top};
  }
  call.rays = directions.size(0);
  call.step = origins.size(0) == 1 ? 0 : 3;
  const int64_t full = any_hit ? 0 : call.rays;
  const auto options = directions.options();
  call.primitive = at::empty({call.rays}, options.dtype(at::kInt));
  call.distance = at::empty({call.rays}, options);
  call.normal = at::empty({full, 3}, options.dtype(at::kFloat));
  call.uv = at::empty({full, 2}, options.dtype(at::kFloat));
  call.face = at::empty({full}, options.dtype(at::kByte));
  return call;
}

}  // namespace occforge
