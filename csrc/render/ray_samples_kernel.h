// Where a ray enters and leaves an axis-aligned box, and where its samples lie.
//
// A ray is o + t d; t keeps the unit of the direction's length. Sample i of a ray lies at t = near + (i + u) step, u a
// constant (1/2: middle of the interval) or, for stratified samples, a number in [0, 1) that depends on the seed, the
// ray and i alone: the same on every device and in every pass, without being stored.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace occforge {

template <typename T>
struct Box {
  T lower[3], upper[3];
};

// Slab test: cuts [near, far] to the part of the ray inside the box. Nothing of it is inside where near >= far
// afterwards (both then still are numbers between the given ones). A ray without direction or with a number that is not
// finite misses.
template <typename T>
OCC_HD void clip_to_box(const Box<T>& box, const T* origin, const T* direction, T& near, T& far) {
  T entry = -HUGE_VAL, exit = HUGE_VAL, length = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const T o = origin[axis], d = direction[axis];
    length += d * d + 0 * o;  // NaN if anything is not finite
    if (d == 0) {
      if (o < box.lower[axis]) exit = -HUGE_VAL;
      if (o > box.upper[axis]) entry = HUGE_VAL;
      continue;
    }
    const T a = (box.lower[axis] - o) / d, b = (box.upper[axis] - o) / d;
    entry = std::fmax(entry, std::fmin(a, b));
    exit = std::fmin(exit, std::fmax(a, b));
  }
  if (!(length > 0 && length < HUGE_VAL)) {
    far = near;
    return;
  }
  const T low = near, high = far;
  near = std::fmax(std::fmin(entry, high), low);
  far = std::fmax(std::fmin(exit, high), low);
}

// 32 bits that look random for each key (finaliser of a multiplicative hash).
OCC_HD uint32_t mix_bits(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

OCC_HD uint32_t ray_key(int64_t seed, int64_t ray) {
  const auto s = static_cast<uint64_t>(seed), r = static_cast<uint64_t>(ray);
  uint32_t key = mix_bits(static_cast<uint32_t>(s) + 0x9e3779b9u);
  key = mix_bits(key ^ static_cast<uint32_t>(s >> 32));
  key = mix_bits(key ^ static_cast<uint32_t>(r));
  return mix_bits(key ^ static_cast<uint32_t>(r >> 32));
}

// Uniform in [0, 1), a multiple of 2^-24.
template <typename T>
OCC_HD T random_offset(uint32_t key, uint32_t sample) {
  return static_cast<T>(static_cast<int32_t>(mix_bits(key + sample * 0x9e3779b9u) >> 8)) * T(1.0 / (1 << 24));
}

// The samples of one ray.
template <typename T>
struct SampleRow {
  T near, step, position;
  bool stratified;
  uint32_t key;

  OCC_HD T at(int64_t i) const {
    return near +
           (static_cast<T>(i) + (stratified ? random_offset<T>(key, static_cast<uint32_t>(i)) : position)) * step;
  }
};

}  // namespace occforge
