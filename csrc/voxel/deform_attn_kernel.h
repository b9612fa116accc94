// Deformable attention: each head of each query reads the feature maps of one image at a few real-valued places and
// adds what it finds there, weighted.
//
// A place (u, v) in [0, 1] x [0, 1] of a map of w x h sites lies at x = u w - 1/2, y = v h - 1/2 in units of sites
// (sites are at whole numbers, u = 0 is the left edge of the first). It reads the four sites around it with the
// bilinear shares (1 - fx)(1 - fy), fx (1 - fy), (1 - fx) fy, fx fy; sites outside the map hold 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace occforge {

constexpr int64_t kMostLevels = 8;

// One feature map of a pyramid: its sites are rows start ... start + height * width - 1, row by row.
struct MapLevel {
  int64_t height, width, start;
};

struct AttnShape {
  int64_t images, sites, heads, channels;  // of the values, (N, S, H, C)
  int64_t queries, levels, points;         // of the places, (R, H, L, P, 2)
  MapLevel level[kMostLevels];
};

// The four sites around a place: rows of the values (-1 outside the map), shares, and their derivatives by x and y.
template <typename acc_t>
struct Footprint {
  int64_t row[4];
  acc_t share[4], by_x[4], by_y[4];
};

// False where the place reads nothing: farther than a site from the map, or not a number.
template <typename acc_t>
OCC_HD bool find_footprint(const MapLevel& level, acc_t u, acc_t v, Footprint<acc_t>& found) {
  const acc_t x = u * static_cast<acc_t>(level.width) - acc_t(0.5);
  const acc_t y = v * static_cast<acc_t>(level.height) - acc_t(0.5);
  if (!(x >= acc_t(-1) && x < static_cast<acc_t>(level.width) && y >= acc_t(-1) &&
        y < static_cast<acc_t>(level.height))) {
    return false;
  }
  const int64_t left = static_cast<int64_t>(std::floor(x)), top = static_cast<int64_t>(std::floor(y));
  const acc_t fx = x - static_cast<acc_t>(left), fy = y - static_cast<acc_t>(top);
  const bool has_left = left >= 0, has_right = left + 1 < level.width;
  const bool has_top = top >= 0, has_bottom = top + 1 < level.height;
  const int64_t first = level.start + top * level.width + left;
  found.row[0] = has_left && has_top ? first : -1;
  found.row[1] = has_right && has_top ? first + 1 : -1;
  found.row[2] = has_left && has_bottom ? first + level.width : -1;
  found.row[3] = has_right && has_bottom ? first + level.width + 1 : -1;
  found.share[0] = (1 - fx) * (1 - fy);
  found.share[1] = fx * (1 - fy);
  found.share[2] = (1 - fx) * fy;
  found.share[3] = fx * fy;
  found.by_x[0] = -(1 - fy);
  found.by_x[1] = 1 - fy;
  found.by_x[2] = -fy;
  found.by_x[3] = fy;
  found.by_y[0] = -(1 - fx);
  found.by_y[1] = -fx;
  found.by_y[2] = 1 - fx;
  found.by_y[3] = fx;
  return true;
}

}  // namespace occforge
