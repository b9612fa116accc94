// The inner loops of sparse_conv_cpu.cpp. Included once per instruction set (no include guard), each time in a
// namespace of its own with OCC_SIMD_BYTES set to the width of a vector, under a pragma that lets the compiler use that
// instruction set. Vectors are written out (GCC/Clang vector extension) since the accumulators have to stay in
// registers; a row's sum is formed in the same order whatever rows are computed beside it.

template <typename T>
struct Lanes {
  static constexpr int kCount = OCC_SIMD_BYTES / sizeof(T);
  // aligned as its element: loads and stores may be unaligned
  typedef T Vector __attribute__((vector_size(OCC_SIMD_BYTES), aligned(sizeof(T)), may_alias));
};

// out[r] += x[r] * w for R rows and NV vectors of columns; w is (channels, NV vectors).
template <typename T, int R, int NV>
static inline void add_rows(const T* const* x, T* const* out, const T* w, int64_t channels) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  V sum[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = *reinterpret_cast<const V*>(out[r] + v * L);
  for (int64_t c = 0; c < channels; ++c, w += NV * L) {
    V column[NV];
    for (int v = 0; v < NV; ++v) column[v] = *reinterpret_cast<const V*>(w + v * L);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) sum[r][v] += x[r][c] * column[v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(out[r] + v * L) = sum[r][v];
}

template <typename T, int NV>
static inline void add_panel(const T* const* x, T* const* out, int64_t count, const T* w, int64_t channels) {
  constexpr int R = OCC_SIMD_ROWS;
  int64_t n = 0;
  for (; n + R <= count; n += R) add_rows<T, R, NV>(x + n, out + n, w, channels);
  if constexpr (R > 4)
    for (; n + 4 <= count; n += 4) add_rows<T, 4, NV>(x + n, out + n, w, channels);
  for (; n + 2 <= count; n += 2) add_rows<T, 2, NV>(x + n, out + n, w, channels);
  for (; n < count; ++n) add_rows<T, 1, NV>(x + n, out + n, w, channels);
}

// Output rows begin..end into `sum` (end - begin, columns), zeroed by the caller; columns is a multiple of the lanes,
// weight (taps, panels of two vectors of columns (a last one of one vector), channels, columns of the panel).
// Returns false where the map names a row that does not exist.
template <typename T>
bool conv_rows(const int32_t* index, int64_t index_stride, int64_t taps, int64_t begin, int64_t end, const T* x,
               int64_t rows, int64_t channels, const T* weight, int64_t columns, T* sum, const T** from, T** to) {
  constexpr int L = Lanes<T>::kCount;
  bool good = true;
  for (int64_t k = 0; k < taps; ++k, weight += channels * columns) {
    const int32_t* const row = index + k * index_stride;
    int64_t count = 0;
    for (int64_t o = begin; o < end; ++o) {
      const bool found = static_cast<uint32_t>(row[o]) < static_cast<uint64_t>(rows);
      good &= found | (row[o] == -1);
      from[count] = x + (found ? row[o] : 0) * channels;
      to[count] = sum + (o - begin) * columns;
      count += found;
    }
    const T* panel = weight;
    for (int64_t c = 0; c < columns; c += 2 * L) {
      if (c > 0)
        for (int64_t n = 0; n < count; ++n) to[n] += 2 * L;
      if (c + L < columns) {
        add_panel<T, 2>(from, to, count, panel, channels);
      } else {
        add_panel<T, 1>(from, to, count, panel, channels);
      }
      panel += 2 * L * channels;
    }
  }
  return good;
}

// total[r] += sum over pairs of x[pair][r] * y[pair], for R channels and NV vectors of columns.
template <typename T, int R, int NV>
static inline void add_products(const T* const* x, const T* const* y, int64_t count, int64_t channel, int64_t column,
                                T* total, int64_t columns) {
  using V = typename Lanes<T>::Vector;
  constexpr int L = Lanes<T>::kCount;
  V sum[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = V{};
  for (int64_t n = 0; n < count; ++n) {
    const T* const left = x[n] + channel;
    V right[NV];
    for (int v = 0; v < NV; ++v) right[v] = *reinterpret_cast<const V*>(y[n] + column + v * L);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) sum[r][v] += left[r] * right[v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(total + r * columns + column + v * L) += sum[r][v];
}

template <typename T, int NV>
static inline void add_products_panel(const T* const* x, const T* const* y, int64_t count, int64_t from, int64_t to,
                                      int64_t column, T* total, int64_t columns) {
  constexpr int R = OCC_SIMD_ROWS;
  int64_t c = from;
  for (; c + R <= to; c += R) add_products<T, R, NV>(x, y, count, c, column, total + (c - from) * columns, columns);
  if constexpr (R > 4)
    for (; c + 4 <= to; c += 4) add_products<T, 4, NV>(x, y, count, c, column, total + (c - from) * columns, columns);
  for (; c < to; ++c) add_products<T, 1, NV>(x, y, count, c, column, total + (c - from) * columns, columns);
}

// Gradient of one tap's weight for the channels from..to: total (to - from, columns), zeroed by the caller. Pairs are
// taken in blocks of `block` whose partial sums are added up, which keeps both the rows in cache and the error small.
template <typename T>
bool weight_rows(const int32_t* index, int64_t outputs, const T* x, int64_t rows, int64_t channels, const T* y,
                 int64_t columns, int64_t from, int64_t to, T* total, const T** left, const T** right, int64_t block) {
  constexpr int L = Lanes<T>::kCount;
  bool good = true;
  for (int64_t o = 0; o < outputs;) {
    int64_t count = 0;
    for (; o < outputs && count < block; ++o) {
      const bool found = static_cast<uint32_t>(index[o]) < static_cast<uint64_t>(rows);
      good &= found | (index[o] == -1);
      left[count] = x + (found ? index[o] : 0) * channels;
      right[count] = y + o * columns;
      count += found;
    }
    for (int64_t c = 0; c < columns; c += 2 * L) {
      if (c + L < columns) {
        add_products_panel<T, 2>(left, right, count, from, to, c, total, columns);
      } else {
        add_products_panel<T, 1>(left, right, count, from, to, c, total, columns);
      }
    }
  }
  return good;
}

// Rows begin..end of the neighbour map, for all taps. Which taps find a voxel is close to random: no branch asks for
// it.
inline void map_rows(const VoxelView& table, const Geometry& geometry, const int32_t* coords, int64_t begin,
                     int64_t end, int32_t* index, int64_t index_stride) {
  const Grid grid = table.grid;
  const Axis along_z = geometry.axis[2];
  const int32_t depth = along_z.kernel;
  const int64_t reach = static_cast<int64_t>(depth - 1) * along_z.dilation;
  for (int32_t kx = 0; kx < geometry.axis[0].kernel; ++kx) {
    for (int32_t ky = 0; ky < geometry.axis[1].kernel; ++ky) {
      int32_t* const out = index + static_cast<int64_t>(kx * geometry.axis[1].kernel + ky) * depth * index_stride;
      int64_t last = -1;  // neighbouring rows lie in one strip: look each up once
      const int32_t* strip = table.nowhere;
      const auto row_at = [&](int64_t first, int64_t y, int64_t z) {
        const int64_t key = first + (z >> 6);
        if (key != last) {
          last = key;
          strip = table.find(key);
        }
        const Segment& segment = table.segments[strip[y & (StripNumbers::kWidth - 1)]];
        const uint64_t bit = uint64_t{1} << (z & 63);
        const int64_t rank = segment.start + __builtin_popcountll(segment.mask & (bit - 1));
        return segment.mask & bit ? static_cast<int32_t>(rank) : -1;
      };
      for (int64_t o = begin; o < end; ++o) {
        const int32_t* const at = coords + 4 * o;
        const int64_t x = geometry.source(0, at[1], kx), y = geometry.source(1, at[2], ky);
        if (at[0] < 0 || at[0] > table.last_batch || x < 0 || x >= grid.x || y < 0 || y >= grid.y) {
          for (int32_t kz = 0; kz < depth; ++kz) out[kz * index_stride + o] = -1;
          continue;
        }
        const int64_t first = table.strips.key(at[0], x, y);
        const int64_t z0 = along_z.forward(at[3], 0);
        if (!geometry.transposed && z0 >= 0 && z0 + reach < grid.z && z0 >> 6 == (z0 + reach) >> 6) {
          for (int32_t kz = 0; kz < depth; ++kz)
            out[kz * index_stride + o] = row_at(first, y, z0 + static_cast<int64_t>(kz) * along_z.dilation);
        } else {
          for (int32_t kz = 0; kz < depth; ++kz) {
            const int64_t z = geometry.source(2, at[3], kz);
            out[kz * index_stride + o] = z >= 0 && z < grid.z ? row_at(first, y, z) : -1;
          }
        }
      }
      if (table.order != nullptr) {
        for (int32_t kz = 0; kz < depth; ++kz)
          for (int64_t o = begin; o < end; ++o) {
            int32_t& rank = out[kz * index_stride + o];
            if (rank >= 0) rank = table.order[rank];
          }
      }
    }
  }
}
