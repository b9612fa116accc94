// From raw density to opacity. With beta the length of the sample's interval in the unit of length that the density is
// per, and b a shift that makes a raw density of 0 almost transparent:
//   tau   = beta softplus(d + b)                 optical depth of the interval
//   alpha = 1 - exp(-tau) = 1 - (1 + e^(d+b))^-beta
//   d tau / d d = beta sigmoid(d + b)
// exp, expm1 and log1p are written out for float, so that the CPU's compiler computes them for many samples at once and
// all devices agree; errors are below 3 ulp. Double precision takes the library's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace occforge {

// x = n ln 2 + r with |r| <= ln(2) / 2: returns e^r - 1, and 2^n. x is cut to -87..88.
OCC_HD float reduce_exp(float x, float& scale) {
  x = x > 88.0f ? 88.0f : x;  // NaN stays NaN
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the fraction is rounded away
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) << 23) + (uint32_t{127} << 23));
  std::memcpy(&scale, &bits, sizeof(scale));
  float p = 1.9841270e-4f;
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  return p * r * r + r;
}

OCC_HD float exponential(float x) {
  float scale;
  const float p = reduce_exp(x, scale);
  return scale * p + scale;
}
OCC_HD double exponential(double x) { return std::exp(x); }

// e^x - 1
OCC_HD float exponential_minus_one(float x) {
  float scale;
  const float p = reduce_exp(x, scale);
  return scale * p + (scale - 1.0f);
}
OCC_HD double exponential_minus_one(double x) { return std::expm1(x); }

// ln(1 + y) for 0 <= y <= 1: 2 artanh(y / (2 + y))
OCC_HD float logarithm_of_one_plus(float y) {
  const float s = y / (2.0f + y), q = s * s;
  float p = 1.0f / 15.0f;
  p = p * q + 1.0f / 13.0f;
  p = p * q + 1.0f / 11.0f;
  p = p * q + 1.0f / 9.0f;
  p = p * q + 1.0f / 7.0f;
  p = p * q + 1.0f / 5.0f;
  p = p * q + 1.0f / 3.0f;
  return 2.0f * (p * q * s + s);
}
OCC_HD double logarithm_of_one_plus(double y) { return std::log1p(y); }

template <typename T>
struct Opacity {
  T alpha;  // share of the light that the interval takes
  T slope;  // d tau / d density
};

template <typename T>
OCC_HD Opacity<T> opacity_of(T density, T shift, T interval) {
  const T x = density + shift;
  const T z = exponential(-std::fabs(x));
  const T softplus = (x > 0 ? x : T(0)) + logarithm_of_one_plus(z);
  return {-exponential_minus_one(-interval * softplus), interval * (x > 0 ? T(1) : z) / (T(1) + z)};
}

}  // namespace occforge
