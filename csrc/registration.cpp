// The schemas of all operators, in one place. Implementations register themselves beside their code
// (TORCH_LIBRARY_IMPL in *_cpu.cpp and *_cuda.cu); fake kernels and autograd formulas in projects/occforge/ops.
#include <torch/library.h>

TORCH_LIBRARY(occforge, m) {
  m.def("scene_bvh(Tensor primitives) -> (Tensor bounds, Tensor links, Tensor order)");
  m.def(
      "scene_cast(Tensor primitives, Tensor bounds, Tensor links, Tensor order, Tensor heights, Tensor maxima, "
      "float x0, float y0, float cell, float top, Tensor origins, Tensor directions, float near, float far, bool "
      "any_hit) "
      "-> (Tensor primitive, Tensor distance, Tensor normal, Tensor uv, Tensor face)");
  m.def(
      "cast_rays(Tensor grid, Tensor origins, Tensor directions, Tensor grid_index, float[] lower, float[] voxel_size, "
      "int free, float max_distance) -> (Tensor label, Tensor cell, Tensor entry, Tensor exit)");
  m.def(
      "observed_cells(Tensor grid, Tensor origins, Tensor targets, float[] lower, float[] voxel_size, int free, "
      "bool through_occupied) -> Tensor");
  m.def("deform_attn(Tensor value, Tensor locations, Tensor weights, Tensor sample, int[] shapes) -> Tensor");
  m.def(
      "deform_attn_backward(Tensor grad, Tensor value, Tensor locations, Tensor weights, Tensor sample, int[] shapes) "
      "-> (Tensor grad_value, Tensor grad_locations, Tensor grad_weights)");
  m.def(
      "ray_counts(Tensor pred, Tensor target, Tensor ring, Tensor origins, Tensor directions, float[] lower, "
      "float[] voxel_size, int free, int num_classes, int rings, float[] thresholds) -> Tensor");
  m.def("confusion_matrix(Tensor pred, Tensor target, int num_classes, Tensor? mask) -> Tensor");
  m.def(
      "frustum_indices(Tensor points, float[] lower, float[] interval, int[] size) "
      "-> (Tensor voxel, Tensor point, Tensor offset)");
  m.def("frustum_pool(Tensor depth, Tensor feat, Tensor voxel, Tensor point, Tensor offset, int[] size) -> Tensor");
  m.def(
      "frustum_pool_backward(Tensor grad, Tensor depth, Tensor feat, Tensor voxel, Tensor point, Tensor offset, "
      "int[] size) -> (Tensor grad_depth, Tensor grad_feat)");
  m.def("upsample_rows(Tensor volume, Tensor rows, int scale) -> Tensor");
  m.def(
      "upsample_rows_backward(Tensor grad, Tensor rows, SymInt batch, SymInt depth, SymInt height, SymInt width, "
      "int scale) -> Tensor");

  // Sparse convolution (voxel/sparse_conv_*)
  m.def(
      "sparse_sites(Tensor coords, int[] out_shape, int[] kernel, int[] stride, int[] padding, int[] dilation, "
      "bool transposed) -> Tensor");
  m.def(
      "sparse_map(Tensor coords, Tensor out_coords, int[] spatial_shape, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation, bool transposed) -> Tensor");
  m.def("sparse_transpose_map(Tensor index, SymInt num_in) -> Tensor");
  m.def("sparse_conv(Tensor features, Tensor weight, Tensor index, Tensor? index_t=None) -> Tensor");
  m.def("sparse_conv_weight(Tensor features, Tensor grad, Tensor index, Tensor? index_t=None) -> Tensor");
  m.def("sparse_sum_pool(Tensor features, Tensor index, Tensor? index_t=None) -> Tensor");
  m.def("sparse_max_pool(Tensor features, Tensor index, Tensor? index_t=None) -> (Tensor, Tensor)");
  m.def("sparse_max_pool_backward(Tensor grad, Tensor winner, Tensor index_t) -> Tensor");
  m.def(
      "voxel_assign(Tensor points, Tensor? batch_index, float[] lower, float[] voxel_size, int[] size) "
      "-> (Tensor coords, Tensor inverse, Tensor point, Tensor offset)");
  m.def(
      "voxel_limit(Tensor coords, Tensor inverse, Tensor point, Tensor offset, int max_points, int max_voxels) "
      "-> (Tensor coords, Tensor inverse, Tensor point, Tensor offset)");
  m.def(
      "voxel_reduce(Tensor features, Tensor inverse, Tensor point, Tensor offset, int reduce) "
      "-> (Tensor out, Tensor argmax)");
  m.def(
      "voxel_reduce_backward(Tensor grad, Tensor inverse, Tensor point, Tensor offset, Tensor argmax, int reduce) "
      "-> Tensor");

  // Rendering (render/ray_samples_*, render/compositing_*, render/volume_render_*)
  m.def(
      "clip_rays(Tensor origins, Tensor directions, float[] lower, float[] upper, float near, float far) "
      "-> (Tensor near, Tensor far)");
  m.def(
      "ray_samples(Tensor near, Tensor step, Tensor counts, float position, Tensor? seed) "
      "-> (Tensor t, Tensor ray, Tensor offset)");
  m.def("density_alpha(Tensor density, Tensor interval, float shift) -> Tensor");
  m.def("density_alpha_backward(Tensor grad, Tensor density, Tensor interval, float shift) -> Tensor");
  m.def("alpha_weights(Tensor alpha, Tensor offset, float stop) -> (Tensor weights, Tensor transmittance)");
  m.def(
      "alpha_weights_backward(Tensor grad_weights, Tensor grad_transmittance, Tensor alpha, Tensor offset, float stop) "
      "-> Tensor");
  m.def("ray_sum(Tensor weights, Tensor values, Tensor offset) -> Tensor");
  m.def(
      "ray_sum_backward(Tensor grad, Tensor weights, Tensor values, Tensor offset) "
      "-> (Tensor grad_weights, Tensor grad_values)");
  m.def("ray_distortion(Tensor weights, Tensor t, Tensor width, Tensor offset) -> Tensor");
  m.def("ray_distortion_backward(Tensor grad, Tensor weights, Tensor t, Tensor width, Tensor offset) -> Tensor");
  m.def(
      "volume_render(Tensor density, Tensor semantics, Tensor origins, Tensor directions, Tensor? grid_index, "
      "Tensor? seed, float[] lower, float[] voxel_size, float near, float far, float step, int count, float position, "
      "float unit, float shift, float stop, float min_weight) "
      "-> (Tensor depth, Tensor semantics, Tensor transmittance, Tensor distortion)");
  m.def(
      "volume_render_backward(Tensor grad_depth, Tensor grad_semantics, Tensor grad_transmittance, "
      "Tensor grad_distortion, Tensor depth, Tensor rendered, Tensor transmittance, Tensor distortion, "
      "Tensor density, Tensor semantics, Tensor origins, Tensor directions, Tensor? grid_index, "
      "Tensor? seed, float[] lower, float[] voxel_size, float near, float far, float step, int count, float position, "
      "float unit, float shift, float stop, float min_weight) -> (Tensor grad_density, Tensor grad_semantics)");
  m.def(
      "volume_render_samples(Tensor density, Tensor semantics, Tensor points, Tensor t, Tensor interval, Tensor width, "
      "Tensor offset, Tensor? grid_index, float shift, float stop, float min_weight) "
      "-> (Tensor depth, Tensor semantics, Tensor transmittance, Tensor distortion)");
  m.def(
      "volume_render_samples_backward(Tensor grad_depth, Tensor grad_semantics, Tensor grad_transmittance, "
      "Tensor grad_distortion, Tensor depth, Tensor rendered, Tensor transmittance, Tensor distortion, "
      "Tensor density, Tensor semantics, Tensor points, Tensor t, Tensor interval, Tensor width, "
      "Tensor offset, Tensor? grid_index, float shift, float stop, float min_weight) "
      "-> (Tensor grad_density, Tensor grad_semantics)");
}
