// Compositing along packed rays: the samples of ray r are offset[r] .. offset[r + 1] - 1, front to back.
//   T_0 = 1,  w_i = T_i alpha_i,  T_{i+1} = T_i (1 - alpha_i)
// A ray stops after the first sample with T_{i+1} < stop; samples behind it weigh 0.
//
// Backward without a division by 1 - alpha, for upstream gradients g_i of the weights and g_T of the last T:
//   R_n = g_T,  d alpha_i = T_i (g_i - R_{i+1}),  R_i = alpha_i g_i + (1 - alpha_i) R_{i+1}
//
// Distortion (J. Barron et al., "Mip-NeRF 360", CVPR 2022), m ascending, delta the widths:
//   L = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 delta_i
//   dL / dw_i = 2 sum_j w_j |m_i - m_j| + 2/3 w_i delta_i
// both in one pass with the sums of w and w m before and behind sample i.
#pragma once

#include <cstdint>

#include "common.h"

namespace occforge {

// Samples first..last of a ray, cut to those that exist.
struct Span {
  int64_t first, last;
};

OCC_HD Span span_of(const int64_t* offset, int64_t ray, int64_t samples) {
  int64_t first = offset[ray], last = offset[ray + 1];
  first = first < 0 ? 0 : first;
  last = last > samples ? samples : last;
  return {first, last < first ? first : last};
}

// Weights of one ray; returns the last T.
template <typename scalar_t, typename T>
OCC_HD T composite(const scalar_t* alpha, int64_t begin, int64_t end, T stop, scalar_t* weights) {
  T transmittance = 1;
  int64_t i = begin;
  for (; i < end; ++i) {
    const T a = static_cast<T>(alpha[i]);
    weights[i] = static_cast<scalar_t>(transmittance * a);
    transmittance *= 1 - a;
    if (transmittance < stop) {
      ++i;
      break;
    }
  }
  for (; i < end; ++i) weights[i] = scalar_t(0);
  return transmittance;
}

// `grad_alpha` (in T) holds the transmittances on the way.
template <typename scalar_t, typename T>
OCC_HD void composite_backward(const scalar_t* alpha, int64_t begin, int64_t end, T stop, const scalar_t* grad_weights,
                               T grad_last, T* grad_alpha) {
  T transmittance = 1;
  int64_t used = begin;
  while (used < end && !(transmittance < stop)) {
    grad_alpha[used] = transmittance;
    transmittance *= 1 - static_cast<T>(alpha[used]);
    ++used;
  }
  for (int64_t i = used; i < end; ++i) grad_alpha[i] = 0;
  T behind = grad_last;
  for (int64_t i = used - 1; i >= begin; --i) {
    const T a = static_cast<T>(alpha[i]), g = static_cast<T>(grad_weights[i]);
    grad_alpha[i] *= g - behind;
    behind = a * g + (1 - a) * behind;
  }
}

template <typename scalar_t, typename T>
OCC_HD T distortion_of(const scalar_t* weights, const scalar_t* middles, const scalar_t* widths, int64_t width_step,
                       int64_t begin, int64_t end) {
  T mass = 0, moment = 0, pairs = 0, self = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T w = static_cast<T>(weights[i]), m = static_cast<T>(middles[i]);
    pairs += w * (m * mass - moment);
    self += w * w * static_cast<T>(widths[i * width_step]);
    mass += w;
    moment += w * m;
  }
  return 2 * pairs + self / 3;
}

template <typename scalar_t, typename T>
OCC_HD void distortion_backward(const scalar_t* weights, const scalar_t* middles, const scalar_t* widths,
                                int64_t width_step, int64_t begin, int64_t end, T grad, scalar_t* grad_weights) {
  T mass = 0, moment = 0;
  for (int64_t i = begin; i < end; ++i) {
    mass += static_cast<T>(weights[i]);
    moment += static_cast<T>(weights[i]) * static_cast<T>(middles[i]);
  }
  T front = 0, front_moment = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T w = static_cast<T>(weights[i]), m = static_cast<T>(middles[i]);
    const T back = mass - front - w, back_moment = moment - front_moment - w * m;
    const T apart = m * (front - back) + back_moment - front_moment;
    grad_weights[i] =
        static_cast<scalar_t>(grad * (2 * apart + T(2.0 / 3.0) * w * static_cast<T>(widths[i * width_step])));
    front += w;
    front_moment += w * m;
  }
}

}  // namespace occforge
