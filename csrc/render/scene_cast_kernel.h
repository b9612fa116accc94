// Ray casting of analytic solids and a height field; the arithmetic of one ray, for host and device.
//
// A primitive is one row of kStride float64 values:
//   0 type (0 tapered box, 1 truncated cone, 2 ellipsoid), 1..3 centre, 4..12 world-to-local rotation (row major),
//   13..15 half sizes (box, ellipsoid) or bottom radius, top radius, half height (cone),
//   16, 17 scale of the top face in x and y, 18 shift of the top face along local x (box only), 19 unused.
// A tapered box covers boxes (1, 1, 0), wedges and gable roofs (one scale 0), cabins with a raked windscreen.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"

namespace occforge {
namespace scene {

constexpr int kStride = 20;
constexpr int kTile = 16;   // cells of the height field along one side of a tile of the maxima table
constexpr int kStack = 64;  // the builder keeps trees shallower than this

struct Ground {
  const float* heights = nullptr;  // (rows, cols), node heights, row = y
  const float* maxima = nullptr;   // (ceil((rows-1)/kTile), ceil((cols-1)/kTile))
  int64_t rows = 0, cols = 0;
  double x0 = 0, y0 = 0, cell = 1;
  double top = 1e300;  // no node is higher: rays above it are not walked
};

struct Hit {
  int32_t primitive = -1;  // -1 none, P = the ground
  int32_t face = 0;        // box: 0..5 = -x +x -y +y -z +z; cone: 1 side, 4 bottom, 5 top; ellipsoid: 1; ground: 5
  double distance = 0;
  double normal[3] = {0, 0, 0};  // world
  double uv[2] = {0, 0};         // metres along the face from its lower corner, v upwards; ground: world x, y
};

struct Tree {
  const double* primitives = nullptr;
  const float* bounds = nullptr;   // (nodes, 6) lower, upper
  const int32_t* links = nullptr;  // (nodes, 2) leaf: first, count; inner: left child, 0 (right child = left + 1)
  const int32_t* order = nullptr;  // primitive ids in leaf order
  int64_t nodes = 0, count = 0;
};

OCC_HD double clamp1(double v) { return v < -1 ? -1 : (v > 1 ? 1 : v); }

// Entry of a ray into a convex solid given as up to six half spaces; false if it misses or starts inside.
OCC_HD bool enter_box(const double* p, const double o[3], const double d[3], double near, double far, double& t,
                      int& face, double n[3]) {
  const double a = p[13], b = p[14], c = p[15];
  const double kx = a * (1 - p[16]) / (2 * c), ky = b * (1 - p[17]) / (2 * c), ks = p[18] / (2 * c);
  // half space: m . x <= h, with z measured from the centre (u = (z + c) / 2c)
  const double planes[6][4] = {{-1, 0, kx + ks, a - (kx + ks) * c},
                               {1, 0, kx - ks, a - (kx - ks) * c},
                               {0, -1, ky, b - ky * c},
                               {0, 1, ky, b - ky * c},
                               {0, 0, -1, c},
                               {0, 0, 1, c}};
  double lo = -1e300, hi = 1e300;
  int entered = -1;
  for (int i = 0; i < 6; ++i) {
    const double* m = planes[i];
    const double speed = m[0] * d[0] + m[1] * d[1] + m[2] * d[2];
    const double gap = m[3] - (m[0] * o[0] + m[1] * o[1] + m[2] * o[2]);  // >= 0 inside
    if (speed < 0) {
      const double s = gap / speed;
      if (s > lo) {
        lo = s;
        entered = i;
      }
    } else if (speed > 0) {
      const double s = gap / speed;
      if (s < hi) hi = s;
    } else if (gap < 0) {
      return false;
    }
    if (lo > hi) return false;
  }
  if (entered < 0 || lo <= near || lo >= far) return false;
  t = lo;
  face = entered;
  const double* m = planes[entered];
  const double norm = 1 / sqrt(m[0] * m[0] + m[1] * m[1] + m[2] * m[2]);
  for (int k = 0; k < 3; ++k) n[k] = m[k] * norm;
  return true;
}

OCC_HD bool enter_cone(const double* p, const double o[3], const double d[3], double near, double far, double& t,
                       int& face, double n[3]) {
  const double r0 = p[13], r1 = p[14], c = p[15];
  const double slope = (r1 - r0) / (2 * c);
  double lo = 1e300;
  const double middle = r0 + slope * (o[2] + c), rate = slope * d[2];
  const double qa = d[0] * d[0] + d[1] * d[1] - rate * rate;
  const double qb = o[0] * d[0] + o[1] * d[1] - middle * rate;
  const double qc = o[0] * o[0] + o[1] * o[1] - middle * middle;
  if (qc < 0 && o[2] > -c && o[2] < c) return false;  // starts inside
  const double disc = qb * qb - qa * qc;
  if (disc > 0 && fabs(qa) > 1e-14) {
    const double root = sqrt(disc);
    for (int k = 0; k < 2; ++k) {
      const double s = (-qb + (k ? root : -root)) / qa;
      const double z = o[2] + s * d[2];
      if (s <= near || s >= far || s >= lo || z < -c || z > c || middle + rate * s < 0) continue;
      const double x = o[0] + s * d[0], y = o[1] + s * d[1];
      const double radial = sqrt(x * x + y * y);
      if (radial <= 0) continue;
      const double norm = 1 / sqrt(1 + slope * slope);
      const double m[3] = {x / radial * norm, y / radial * norm, -slope * norm};
      if (m[0] * d[0] + m[1] * d[1] + m[2] * d[2] >= 0) continue;  // leaving
      lo = s;
      face = 1;
      for (int j = 0; j < 3; ++j) n[j] = m[j];
    }
  }
  if (d[2] != 0) {
    const int top = d[2] < 0;
    const double radius = top ? r1 : r0;
    const double s = ((top ? c : -c) - o[2]) / d[2];
    const double x = o[0] + s * d[0], y = o[1] + s * d[1];
    if (s > near && s < far && s < lo && x * x + y * y <= radius * radius) {
      lo = s;
      face = top ? 5 : 4;
      n[0] = n[1] = 0;
      n[2] = top ? 1 : -1;
    }
  }
  if (lo >= 1e300) return false;
  t = lo;
  return true;
}

OCC_HD bool enter_ellipsoid(const double* p, const double o[3], const double d[3], double near, double far, double& t,
                            int& face, double n[3]) {
  double qa = 0, qb = 0, qc = -1;
  for (int k = 0; k < 3; ++k) {
    const double x = o[k] / p[13 + k], y = d[k] / p[13 + k];
    qa += y * y;
    qb += x * y;
    qc += x * x;
  }
  const double disc = qb * qb - qa * qc;
  if (qc <= 0 || disc <= 0 || qb >= 0) return false;
  const double s = (-qb - sqrt(disc)) / qa;
  if (s <= near || s >= far) return false;
  t = s;
  face = 1;
  double norm = 0;
  for (int k = 0; k < 3; ++k) {
    n[k] = (o[k] + s * d[k]) / (p[13 + k] * p[13 + k]);
    norm += n[k] * n[k];
  }
  norm = 1 / sqrt(norm);
  for (int k = 0; k < 3; ++k) n[k] *= norm;
  return true;
}

// One primitive; fills the hit when it is nearer than far.
OCC_HD bool hit_primitive(const double* p, const double origin[3], const double direction[3], double near, double far,
                          bool details, Hit& hit) {
  double o[3], d[3], n[3] = {0, 0, 0}, t = 0;
  const double shift[3] = {origin[0] - p[1], origin[1] - p[2], origin[2] - p[3]};
  for (int k = 0; k < 3; ++k) {
    const double* r = p + 4 + 3 * k;
    o[k] = r[0] * shift[0] + r[1] * shift[1] + r[2] * shift[2];
    d[k] = r[0] * direction[0] + r[1] * direction[1] + r[2] * direction[2];
  }
  int face = 0;
  const int type = static_cast<int>(p[0]);
  const bool ok = type == 0   ? enter_box(p, o, d, near, far, t, face, n)
                  : type == 1 ? enter_cone(p, o, d, near, far, t, face, n)
                              : enter_ellipsoid(p, o, d, near, far, t, face, n);
  if (!ok) return false;
  hit.distance = t;
  hit.face = face;
  if (!details) return true;
  const double x = o[0] + t * d[0], y = o[1] + t * d[1], z = o[2] + t * d[2];
  for (int k = 0; k < 3; ++k) hit.normal[k] = p[4 + k] * n[0] + p[7 + k] * n[1] + p[10 + k] * n[2];
  if (type == 0) {
    hit.uv[0] = face < 2 ? y + p[14] : x + p[13];
    hit.uv[1] = face < 4 ? z + p[15] : y + p[14];
  } else {
    const double radius = type == 1 ? (p[13] > p[14] ? p[13] : p[14]) : p[13];
    hit.uv[0] = (atan2(y, x) + 3.14159265358979323846) * radius;
    hit.uv[1] = z + p[15];
    if (type == 2) hit.uv[1] = (asin(clamp1(z / p[15])) + 1.57079632679489661923) * p[15];
    if (type == 1 && face >= 4) {
      hit.uv[0] = x + radius;
      hit.uv[1] = y + radius;
    }
  }
  return true;
}

OCC_HD int64_t clampi(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : (v > hi ? hi : v); }

// First crossing of the bilinear height field from above in (near, far).
OCC_HD bool hit_ground(const Ground& g, const double o[3], const double d[3], double near, double far, bool details,
                       Hit& hit) {
  if (g.heights == nullptr || g.rows < 2 || g.cols < 2) return false;
  const int64_t nx = g.cols - 1, ny = g.rows - 1;
  const double inv = 1 / g.cell;
  // cell coordinates: p(t) = a + b t
  const double ax = (o[0] - g.x0) * inv, ay = (o[1] - g.y0) * inv, bx = d[0] * inv, by = d[1] * inv;
  double t0 = near, t1 = far;
  const double a2[2] = {ax, ay}, b2[2] = {bx, by}, top[2] = {double(nx), double(ny)};
  for (int k = 0; k < 2; ++k) {
    if (b2[k] == 0) {
      if (a2[k] < 0 || a2[k] > top[k]) return false;
      continue;
    }
    double lo = -a2[k] / b2[k], hi = (top[k] - a2[k]) / b2[k];
    if (lo > hi) {
      const double s = lo;
      lo = hi;
      hi = s;
    }
    if (lo > t0) t0 = lo;
    if (hi < t1) t1 = hi;
  }
  if (d[2] > 0) {
    const double leaves = (g.top - o[2]) / d[2];
    if (leaves < t1) t1 = leaves;
  } else if (d[2] < 0) {
    const double arrives = (g.top - o[2]) / d[2];
    if (arrives > t0) t0 = arrives;
  } else if (o[2] > g.top) {
    return false;
  }
  if (t0 >= t1) return false;
  const int64_t tiles_x = (nx + kTile - 1) / kTile, tiles_y = (ny + kTile - 1) / kTile;
  const int sx = bx > 0 ? 1 : -1, sy = by > 0 ? 1 : -1;
  const double eps = 1e-9;
  int64_t ti = clampi(int64_t(floor((ax + bx * (t0 + eps)) / kTile)), 0, tiles_x - 1);
  int64_t tj = clampi(int64_t(floor((ay + by * (t0 + eps)) / kTile)), 0, tiles_y - 1);
  double t = t0;
  while (t < t1) {
    const double edge_x = bx == 0 ? 1e300 : (double(ti + (sx > 0)) * kTile - ax) / bx;
    const double edge_y = by == 0 ? 1e300 : (double(tj + (sy > 0)) * kTile - ay) / by;
    double end = edge_x < edge_y ? edge_x : edge_y;
    if (end > t1) end = t1;
    if (end < t) end = t;
    const double z0 = o[2] + d[2] * t, z1 = o[2] + d[2] * end;
    if ((z0 < z1 ? z0 : z1) <= double(g.maxima[tj * tiles_x + ti])) {
      const int64_t i_lo = ti * kTile, j_lo = tj * kTile;
      const int64_t i_hi = (i_lo + kTile < nx ? i_lo + kTile : nx) - 1;
      const int64_t j_hi = (j_lo + kTile < ny ? j_lo + kTile : ny) - 1;
      int64_t i = clampi(int64_t(floor(ax + bx * (t + eps))), i_lo, i_hi);
      int64_t j = clampi(int64_t(floor(ay + by * (t + eps))), j_lo, j_hi);
      double s = t;
      while (true) {
        const double cx = bx == 0 ? 1e300 : (double(i + (sx > 0)) - ax) / bx;
        const double cy = by == 0 ? 1e300 : (double(j + (sy > 0)) - ay) / by;
        double stop = cx < cy ? cx : cy;
        if (stop > end) stop = end;
        if (stop < s) stop = s;
        const float* row = g.heights + j * g.cols + i;
        const double h00 = row[0], h10 = row[1], h01 = row[g.cols], h11 = row[g.cols + 1];
        const double hx = h10 - h00, hy = h01 - h00, hxy = h11 - h10 - h01 + h00;
        // with u = u0 + bx w, v = v0 + by w, w = time since s: f(w) = z - h is a quadratic
        const double u0 = ax + bx * s - i, v0 = ay + by * s - j;
        const double fa = -hxy * bx * by;
        const double fb = d[2] - (hx * bx + hy * by + hxy * (u0 * by + v0 * bx));
        const double fc = o[2] + d[2] * s - (h00 + hx * u0 + hy * v0 + hxy * u0 * v0);
        const double span = stop - s;
        double w = -1;
        if (fc <= 0) {
          if (fb < 0 && fc > -1e-6) w = 0;  // touches exactly at the border of two cells
        } else if (fabs(fa) < 1e-15) {
          if (fb < 0) w = -fc / fb;
        } else {
          const double disc = fb * fb - 4 * fa * fc;
          if (disc >= 0) {
            const double q = -0.5 * (fb + (fb < 0 ? -sqrt(disc) : sqrt(disc)));
            const double w0 = q / fa, w1 = q != 0 ? fc / q : -1;
            w = w0 >= 0 && (w1 < 0 || w0 < w1) ? w0 : w1;
          }
        }
        if (w >= 0 && w <= span + 1e-12 && s + w > near && s + w < far) {
          hit.distance = s + w;
          hit.face = 5;
          if (details) {
            const double u = u0 + bx * w, v = v0 + by * w;
            const double gx = (hx + hxy * v) * inv, gy = (hy + hxy * u) * inv;
            const double norm = 1 / sqrt(gx * gx + gy * gy + 1);
            hit.normal[0] = -gx * norm;
            hit.normal[1] = -gy * norm;
            hit.normal[2] = norm;
            hit.uv[0] = o[0] + d[0] * hit.distance;
            hit.uv[1] = o[1] + d[1] * hit.distance;
          }
          return true;
        }
        if (stop >= end) break;
        if (cx < cy) {
          i += sx;
          if (i < i_lo || i > i_hi) break;
        } else {
          j += sy;
          if (j < j_lo || j > j_hi) break;
        }
        s = stop;
      }
    }
    if (end >= t1) break;
    if (edge_x < edge_y) {
      ti += sx;
      if (ti < 0 || ti >= tiles_x) break;
    } else {
      tj += sy;
      if (tj < 0 || tj >= tiles_y) break;
    }
    t = end;
  }
  return false;
}

// Overlap of a ray with the bounds of a node; the far side is widened so that float32 never loses a hit.
OCC_HD bool cross_bounds(const float* b, const float o[3], const float inv[3], float far, float& entry) {
  float lo = 0, hi = far;
  for (int k = 0; k < 3; ++k) {
    const float s0 = (b[k] - o[k]) * inv[k], s1 = (b[3 + k] - o[k]) * inv[k];
    const float near_side = s0 < s1 ? s0 : s1, far_side = s0 < s1 ? s1 : s0;
    lo = near_side > lo ? near_side : lo;
    hi = far_side < hi ? far_side : hi;
  }
  entry = lo;
  return lo <= hi * 1.00001f + 1e-4f;
}

// The nearest hit of a ray (or, with any_hit, whichever is found first) in (near, far).
OCC_HD Hit cast(const Tree& tree, const Ground& ground, const double o[3], const double d[3], double near, double far,
                bool any_hit, bool details) {
  Hit best;
  for (int k = 0; k < 3; ++k) {  // a ray that is not a number, or infinite, hits nothing
    if (!(fabs(o[k]) < 1e300 && fabs(d[k]) < 1e300)) return best;
  }
  if (hit_ground(ground, o, d, near, far, details, best)) {
    best.primitive = static_cast<int32_t>(tree.count);
    far = best.distance;
    if (any_hit) return best;
  }
  if (tree.nodes > 0) {
    const float of[3] = {float(o[0]), float(o[1]), float(o[2])};
    float inv[3];
    for (int k = 0; k < 3; ++k) {  // no division by zero: 0 * inf would be NaN
      const double v = fabs(d[k]) > 1e-12 ? d[k] : (d[k] < 0 ? -1e-12 : 1e-12);
      inv[k] = float(1 / v);
    }
    int32_t stack[kStack];
    float entries[kStack];
    int depth = 0;
    float entry;
    if (cross_bounds(tree.bounds, of, inv, float(far), entry)) {
      stack[depth] = 0;
      entries[depth++] = entry;
    }
    while (depth > 0) {
      const int32_t node = stack[--depth];
      if (entries[depth] > float(far) * 1.00001f + 1e-4f) continue;
      const int32_t first = tree.links[2 * node], count = tree.links[2 * node + 1];
      if (count > 0) {
        for (int32_t k = first; k < first + count; ++k) {
          const int32_t id = tree.order[k];
          if (hit_primitive(tree.primitives + int64_t(id) * kStride, o, d, near, far, details, best)) {
            best.primitive = id;
            far = best.distance;
            if (any_hit) return best;
          }
        }
        continue;
      }
      float e0, e1;
      const bool c0 = cross_bounds(tree.bounds + 6 * int64_t(first), of, inv, float(far), e0);
      const bool c1 = cross_bounds(tree.bounds + 6 * int64_t(first + 1), of, inv, float(far), e1);
      const bool swap = c0 && c1 && e0 < e1;  // the nearer child is popped first
      if (swap) {
        stack[depth] = first + 1;
        entries[depth++] = e1;
        stack[depth] = first;
        entries[depth++] = e0;
      } else {
        if (c0) {
          stack[depth] = first;
          entries[depth++] = e0;
        }
        if (c1) {
          stack[depth] = first + 1;
          entries[depth++] = e1;
        }
      }
    }
  }
  return best;
}

// Tables of results, one row a ray. With any_hit, a visibility question, normal, uv and face are left out.
struct HitRows {
  int32_t* primitive;
  double* distance;
  float* normal;
  float* uv;
  uint8_t* face;
  bool any_hit;

  OCC_HD void cast(int64_t ray, const Tree& tree, const Ground& ground, const double* origin, const double* direction,
                   double near, double far) const {
    const Hit hit = scene::cast(tree, ground, origin, direction, near, far, any_hit, !any_hit);
    primitive[ray] = hit.primitive;
    distance[ray] = hit.primitive < 0 ? INFINITY : hit.distance;
    if (any_hit) return;
    for (int k = 0; k < 3; ++k) normal[3 * ray + k] = static_cast<float>(hit.normal[k]);
    for (int k = 0; k < 2; ++k) uv[2 * ray + k] = static_cast<float>(hit.uv[k]);
    face[ray] = static_cast<uint8_t>(hit.face);
  }
};

}  // namespace scene
}  // namespace occforge
