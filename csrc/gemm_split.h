// float32 product on AMX tiles, which multiply bfloat16 only. Every float32 is the exact sum of three bfloat16 numbers,
// high + middle + low (8 bits of significand each); of the nine products of two such sums the six largest are taken, and
// what is left out is below 2^-24 of the result: the accuracy of a float32 product at six bfloat16 products a piece. The
// tile product adds 32 products before it rounds into the accumulator, so one accumulator takes all six.
//
// The tiles flush subnormals, and an infinity has no parts. Operands are therefore held to `in_split_range`: magnitudes
// of a row (or panel) at most kSplitMost and, unless all are 0, at least kSplitLeast at their largest. Whoever fills an
// operand passes `outside` to learn that one is not, and then takes the product in plain float32.

// One element of a split operand. Rows of A in tiles: [rows / 16][am / 32][3][16][32] bf16, am = padded_k. Panels of B: 32
// columns at a time, [Kp / 32][3][16][32][2].
struct split {
  uint16_t part[3];
};
template <>
struct ElemOf<split> {
  typedef split type;
};
template <>
HFK_INLINE int64_t padded_k<split>(int64_t K) {
  return round_up(K, 32);
}
constexpr int64_t kSplitTile = 16 * 32;  // bf16 of one part of a tile

// Bits of the least and the largest magnitude: 2^-52 and 2^60. Products of two then stay normal down to their last part.
constexpr uint32_t kSplitLeast = (127 - 52) << 23, kSplitMost = (127 + 60) << 23;
static HFK_INLINE bool in_split_range(uint32_t largest) {
  return largest == 0 || (largest >= kSplitLeast && largest <= kSplitMost);
}
static HFK_INLINE __m512i magnitude_max(__m512i most, V v) {
  // As integers: an infinity is above every number, a NaN above that.
  return _mm512_max_epu32(most, _mm512_and_si512((__m512i)v, _mm512_set1_epi32(0x7fffffff)));
}

// 32 consecutive elements: the next part of both halves, which lose it.
static HFK_INLINE __m512i split_run(V& low, V& high) {
  const __m512i part = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  low -= (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(part)), 16);
  high -= (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(part, 1)), 16);
  return part;
}
// The same for two rows whose elements stand side by side as pairs.
static HFK_INLINE __m512i split_pairs(V& even, V& odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i pairs = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
  even -= (V)_mm512_slli_epi32(pairs, 16);
  odd -= (V)_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u)));
  return pairs;
}

// One panel of B. Its elements lie along n (sn == 1: pairs of rows are put side by side) or along k (sk == 1: 32
// elements of 16 columns are split, then transposed); other strides go through a copy.
template <class T>
static __attribute__((noinline)) void split_panel(int64_t K, int64_t columns, const T* s, int64_t sk, int64_t sn,
                                                  const float* scale, split* d, int32_t* outside) {
  const int64_t Kp = padded_k<split>(K);
  bf16* out = reinterpret_cast<bf16*>(d);
  __m512i most = _mm512_setzero_si512();
  alignas(64) bf16 part[3][16][32];
  for (int64_t n = 0; n < PW; n += 16) {
    bf16* to = out + (n / 32) * Kp * 96 + (n % 32) * 2;
    const int64_t here = imin(16, columns - n);
    if (sk == 1 && sn != 1 && !scale) {
      for (int64_t k = 0; k < Kp; k += 32) {
        for (int64_t j = 0; j < here; j++) {
          const T* column = s + (n + j) * sn + k;
          V low = load_lanes(first_lanes(K - k), column), high = load_lanes(first_lanes(K - k - 16), column + 16);
          most = magnitude_max(magnitude_max(most, low), high);
          for (int p = 0; p < 3; p++) _mm512_store_si512(part[p][j], split_run(low, high));
        }
        for (int p = 0; p < 3; p++)
          transpose16(part[p], 64, to + (k / 32) * 3072 + p * 1024, 128, int(imax(0, here)));
      }
      continue;
    }
    for (int64_t k = 0; k < Kp; k += 2) {
      V pair[2];
      for (int64_t i = 0; i < 2; i++) {
        if (k + i >= K || here <= 0) {
          pair[i] = zero();
        } else if (sn == 1) {
          pair[i] = load_lanes(first_lanes(here), s + (k + i) * sk + n);
        } else {
          float row[16] = {};
          for (int64_t j = 0; j < here; j++) row[j] = to_float(s[(k + i) * sk + (n + j) * sn]);
          pair[i] = load(row);
        }
        if (scale && k + i < K) pair[i] *= scale[k + i];
        most = magnitude_max(most, pair[i]);
      }
      bf16* at = to + (k / 32) * 3072 + (k % 32) * 32;
      for (int p = 0; p < 3; p++) _mm512_storeu_si512(at + p * 1024, split_pairs(pair[0], pair[1]));
    }
  }
  if (outside && !in_split_range(_mm512_reduce_max_epu32(most))) __atomic_store_n(outside, 1, __ATOMIC_RELAXED);
}
template <class T>
static HFK_INLINE void pack_panel(int64_t K, int64_t columns, const T* s, int64_t sk, int64_t sn, const float* scale,
                                  split* d, int32_t* outside = nullptr) {
  split_panel(K, columns, s, sk, sn, scale, d, outside);
}

// A panel back in floats, as pack_panel<float> lays it out: the exact weights again.
static void unsplit_panel(int64_t K, const split* B, float* d) {
  const int64_t Kp = padded_k<split>(K);
  const bf16* b = reinterpret_cast<const bf16*>(B);
  for (int64_t k = 0; k < K; k++)
    for (int64_t n = 0; n < PW; n++) {
      const bf16* at = b + (n / 32) * Kp * 96 + (k / 32) * 3072 + ((k % 32) / 2) * 64 + (n % 32) * 2 + (k & 1);
      d[k * PW + n] = (to_float(at[2048]) + to_float(at[1024])) + to_float(at[0]);
    }
}

// Rows of A in tiles. index: row numbers of `source`, or null. outside (or null): set for every row that is.
template <class T>
static const split* split_rows(int64_t rows, int64_t K, const T* source, int64_t stride, const int32_t* index,
                               split* buffer, int64_t* out_stride, int32_t* outside = nullptr) {
  const int64_t Kp = padded_k<split>(K);
  bool any = false;
  for (int64_t m = 0; m < rows; m++) {
    const T* s = source + (index ? int64_t(index[m]) : m) * stride;
    bf16* d = reinterpret_cast<bf16*>(buffer) + (m / 16) * 48 * Kp + (m % 16) * 32;
    __m512i most = _mm512_setzero_si512();
    for (int64_t k = 0; k < Kp; k += 32, d += 3 * kSplitTile) {
      V low, high;
      if (k + 32 <= K)
        low = load(s + k), high = load(s + k + 16);
      else
        low = load_lanes(first_lanes(K - k), s + k), high = load_lanes(first_lanes(K - k - 16), s + k + 16);
      most = magnitude_max(magnitude_max(most, low), high);
#pragma GCC unroll 3
      for (int p = 0; p < 3; p++) _mm512_storeu_si512(d + p * kSplitTile, split_run(low, high));
    }
    any |= !in_split_range(_mm512_reduce_max_epu32(most));
  }
  if (outside && any) __atomic_store_n(outside, 1, __ATOMIC_RELAXED);
  *out_stride = Kp;
  return buffer;
}

// Columns of `rows` rows as rows of A: element (j, k0 + m) = s[m][j]. k0 is a multiple of 32; the last 32 elements are
// filled up with zeros.
static void split_transposed(int64_t rows, int64_t columns, const float* s, int64_t ld, split* A, int64_t am, int64_t k0,
                             int32_t* outside) {
  alignas(64) float square[2][256];
  __m512i most = _mm512_setzero_si512();
  for (int64_t m = 0; m < rows; m += 32)
    for (int64_t j = 0; j < columns; j += 16) {
      for (int64_t half = 0; half < 2; half++)
        transpose16(s + (m + 16 * half) * ld + j, ld * 4, square[half], 64, int(imax(0, imin(16, rows - m - 16 * half))));
      bf16* d = reinterpret_cast<bf16*>(A) + (j / 16) * 48 * am + (k0 + m) * 48;
      for (int64_t q = 0; q < 16; q++, d += 32) {
        V low = load(square[0] + 16 * q), high = load(square[1] + 16 * q);
        if (j + q < columns) most = magnitude_max(magnitude_max(most, low), high);
        for (int p = 0; p < 3; p++) _mm512_storeu_si512(d + p * kSplitTile, split_run(low, high));
      }
    }
  if (!in_split_range(_mm512_reduce_max_epu32(most))) __atomic_store_n(outside, 1, __ATOMIC_RELAXED);
}

// C = A B for one piece of K: 32 (two) or 16 rows, 32 (wide) or 16 columns. row: bf16 from one row of tiles to the next.
// `ahead`: lines [ahead, last) of the panel that follows are fetched on the way, 96 lines a step of 32.
template <bool two, bool wide>
static HFK_INLINE void split_piece(int64_t K, const bf16* a, int64_t row, const bf16* b, float* C, int64_t ldc, bool add,
                                   const bf16* ahead, int64_t lines) {
  if (add) {
    _tile_loadd(0, C, ldc * 4);
    if (wide) _tile_loadd(1, C + 16, ldc * 4);
    if (two) _tile_loadd(2, C + 16 * ldc, ldc * 4);
    if (two && wide) _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Tiles 4 and 5: one part of A; 6 and 7: one part of B. Each step changes one side only.
#define HFK_SPLIT_A(part)                        \
  _tile_loadd(4, a + part * kSplitTile, 64);     \
  if (two) _tile_loadd(5, a + row + part * kSplitTile, 64)
#define HFK_SPLIT_B(part)              \
  _tile_loadd(6, b + part * 1024, 128); \
  if (wide) _tile_loadd(7, b + part * 1024 + 32, 128)
#define HFK_SPLIT_PRODUCT          \
  _tile_dpbf16ps(0, 4, 6);           \
  if (wide) _tile_dpbf16ps(1, 4, 7); \
  if (two) _tile_dpbf16ps(2, 5, 6);  \
  if (two && wide) _tile_dpbf16ps(3, 5, 7)
  for (int64_t k = 0; k < K; k += 32, a += 3 * kSplitTile, b += 3072, ahead += 3072) {
    for (int64_t i = 0; i < lines; i++) prefetch_l2(ahead + i * 32);
    HFK_SPLIT_A(0);
    HFK_SPLIT_B(2);
    HFK_SPLIT_PRODUCT;
    HFK_SPLIT_B(1);
    HFK_SPLIT_PRODUCT;
    HFK_SPLIT_A(1);
    HFK_SPLIT_PRODUCT;
    HFK_SPLIT_B(0);
    HFK_SPLIT_PRODUCT;
    HFK_SPLIT_A(2);
    HFK_SPLIT_PRODUCT;
    HFK_SPLIT_A(0);
    HFK_SPLIT_PRODUCT;
  }
#undef HFK_SPLIT_A
#undef HFK_SPLIT_B
#undef HFK_SPLIT_PRODUCT
  _tile_stored(0, C, ldc * 4);
  if (wide) _tile_stored(1, C + 16, ldc * 4);
  if (two) _tile_stored(2, C + 16 * ldc, ldc * 4);
  if (two && wide) _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
}

// See gemm_store of bf16.
constexpr int64_t kSplitK = 1024;  // so that a piece of 32 rows and one of 32 columns share the second-level cache

static __attribute__((noinline)) void gemm_store(int64_t M, int64_t N, int64_t K, const split* A, int64_t am,
                                                 const split* B, float* C, int64_t ldc) {
  TileConfig config;
  alignas(64) float edge[32 * 32];
  const int64_t Kp = padded_k<split>(K), row = 48 * am;
  // Low panels are in the second-level cache already.
  const int64_t share = Kp >= 256 ? ceil_div(96, imax(1, ceil_div(M, 32))) : 0;
  for (int64_t n = 0; n < N; n += 32) {
    const bool wide = N - n > 16;
    const int64_t columns = wide ? 32 : 16;
    for (int64_t k = 0; k < Kp; k += kSplitK) {
      const int64_t kc = imin(kSplitK, Kp - k);
      const bf16* b = reinterpret_cast<const bf16*>(B) + n * Kp * 3 + k * 96;
      for (int64_t m = 0; m < M; m += 32) {
        const int64_t rows = imin(32, M - m), first = m / 32 * share;
        const bool two = rows > 16, whole = rows % 16 == 0, add = k > 0;
        const bf16* a = reinterpret_cast<const bf16*>(A) + m / 16 * row + k * 48;
        // The panel behind this one follows it in memory. Beyond the last one nothing is read: a hint cannot fault.
        const bf16* ahead = b + 96 * Kp + first * 32;
        const int64_t lines = imax(0, imin(share, 96 - first));
        float* c = C + m * ldc + n;
        float* d = whole ? c : edge;
        const int64_t ldd = whole ? ldc : 32;
        if (!whole && add)
          for (int64_t i = 0; i < rows; i++) memcpy(edge + i * 32, c + i * ldc, size_t(columns) * 4);
        if (two && wide)
          split_piece<true, true>(kc, a, row, b, d, ldd, add, ahead, lines);
        else if (two)
          split_piece<true, false>(kc, a, row, b, d, ldd, add, ahead, lines);
        else if (wide)
          split_piece<false, true>(kc, a, row, b, d, ldd, add, ahead, lines);
        else
          split_piece<false, false>(kc, a, row, b, d, ldd, add, ahead, lines);
        if (!whole)
          for (int64_t i = 0; i < rows; i++) memcpy(c + i * ldc, edge + i * 32, size_t(columns) * 4);
      }
    }
  }
}
