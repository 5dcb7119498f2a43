// frozen_linear with rows of x rounded to int8 as they are read: one scale a row, one an output, sums in int32.
//
// Every number is made by the same roundings whatever multiplies: integers are exact, and the few float32 operations on
// them are never contracted. So bits depend on the row and on W alone (an activation's own bits: on the instruction set).
#pragma once
#include "../../base/math.h"
#include "../../base/vectors.h"
#include "../../gemm/int8_tiles.h"
#include "int8_args.h"

namespace hfk {
namespace HFK_NAMESPACE {

// The smallest row is taken as this large, so that what it is divided by is a normal number: 2^-100.
constexpr float kInt8Least = 0x1p-100f;

// The product as it is rounded to float32: what follows it may not be joined with it.
static HFK_INLINE V rounded(V v) {
#if defined(__x86_64__) && !defined(HFK_VECTOR_LENGTH)
  __asm__("" : "+v"(v));
#else
  __asm__("" : "+m"(v));
#endif
  return v;
}
// To the nearest integer, ties to even.
static HFK_INLINE VI nearest(V v) {
#if defined(__AVX512F__)
  return (VI)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  return (VI)_mm256_cvtps_epi32((__m256)v);
#elif defined(__x86_64__) && !defined(HFK_VECTOR_LENGTH)
  return (VI)_mm_cvtps_epi32((__m128)v);
#else
  VI r;
  for (int i = 0; i < VL; i++) r[i] = int32_t(std::nearbyint(v[i]));
  return r;
#endif
}

// Rows of Kp elements as the product wants them: int16 (pairs), q + 128 (bytes) or int8 (tiles).
static HFK_INLINE int64_t int8_row_bytes(Int8Way way, int64_t K) { return round_up(K, 64) * (way == kInt8Pairs ? 2 : 1); }

// One row: d = round(x * 127 / max|x|), and the scale max|x| / 127. plain: room for K floats.
template <class T>
static float int8_row(const Int8LinearArgs& a, const T* x, float* plain, char* d) {
  typedef int16_t VS __attribute__((vector_size(VL * 2), aligned(2), may_alias));
  typedef int8_t VB __attribute__((vector_size(VL), aligned(1), may_alias));
  const float* row = plain;
  if constexpr (sizeof(T) == 4)
    if (a.outliers == 0) row = x;
  if (row == plain) {
    for_vectors(a.K, [&](int64_t k, auto full) { put<full.value>(plain + k, get<full.value>(x + k, a.K - k), a.K - k); });
    for (int64_t j = 0; j < a.outliers; j++) plain[a.outlier_columns[j]] = 0.f;
  }
  // Of numbers without a sign the bits are in the numbers' order, infinity and NaN above all.
  VI most = {};
  for_vectors(a.K, [&](int64_t k, auto full) {
    const VI bits = (VI)get<full.value>(row + k, a.K - k) & 0x7fffffff;
    most = bits > most ? bits : most;
  });
  int32_t largest = 0;
  for (int i = 0; i < VL; i++) largest = most[i] > largest ? most[i] : largest;
  const int64_t bytes = int8_row_bytes(a.way, a.K);
  if (largest >= 0x7f800000) {
    memset(d, 0, size_t(bytes));
    return __builtin_nanf("");
  }
  float size;
  memcpy(&size, &largest, 4);
  size = size > kInt8Least ? size : kInt8Least;
  const float inverse = 127.f / size;
  // What stands behind the row is multiplied by weights of 0.
  memset(d + a.K * (a.way == kInt8Pairs ? 2 : 1), 0, size_t(bytes - a.K * (a.way == kInt8Pairs ? 2 : 1)));
  auto each = [&](auto put_numbers) __attribute__((always_inline)) {
    for_vectors(a.K, [&](int64_t k, auto full) {
      put_numbers(k, nearest(get<full.value>(row + k, a.K - k) * inverse), full.value ? VL : a.K - k);
    });
  };
  if (a.way == kInt8Pairs)
    each([&](int64_t k, VI q, int64_t n) __attribute__((always_inline)) {
      const VS s = __builtin_convertvector(q, VS);
      memcpy(d + 2 * k, &s, size_t(2 * n));
    });
  else
    each([&](int64_t k, VI q, int64_t n) __attribute__((always_inline)) {
      const VB s = __builtin_convertvector(a.way == kInt8Bytes ? q ^ 128 : q, VB);
      memcpy(d + k, &s, size_t(n));
    });
  return size / 127.f;
}

template <class T>
static void int8_rows_of(const Int8LinearArgs& a, int64_t m0, int64_t rows, char* d, float* scales) {
  const int64_t bytes = int8_row_bytes(a.way, a.K);
  float* plain = scratch<float>(1, imax(1, a.K));
  for (int64_t m = 0; m < rows; m++)
    scales[m] = int8_row<T>(a, static_cast<const T*>(a.x) + (m0 + m) * a.x_stride, plain, d + m * bytes);
}

// What the outlier columns add to VL outputs of a row: products and sums in double, where a product of two floats is exact.
template <class T>
static HFK_INLINE V int8_outliers(const Int8LinearArgs& a, const T* x, int64_t n, int64_t columns) {
  double sums[VL] = {};
  float weights[VL];
  for (int64_t j = 0; j < a.outliers; j++) {
    const double value = to_float(x[a.outlier_columns[j]]);
    store(weights, load_first(a.outlier_weights + j * a.N + n, columns));
    for (int i = 0; i < VL; i++) sums[i] += value * double(weights[i]);
  }
  V v;
  for (int i = 0; i < VL; i++) v[i] = float(sums[i]);
  return v;
}

template <class T>
static __attribute__((noinline)) void int8_epilogue(const Int8LinearArgs& a, int64_t m0, int64_t rows, int64_t n0,
                                                    const float* scales, const int32_t* C) {
  const int64_t columns = imin(kInt8Columns, a.N - n0);
  for (int64_t m = 0; m < rows; m++) {
    T* out = static_cast<T*>(a.out) + (m0 + m) * a.N + n0;
    for (int64_t n = 0; n < columns; n += VL) {
      const V scale = rounded(load_first(a.scale + n0 + n, columns - n) * scales[m]);
      V v = rounded(__builtin_convertvector(load_int(C + m * kInt8Columns + n), V) * scale);
      if (a.outliers) v += int8_outliers(a, static_cast<const T*>(a.x) + (m0 + m) * a.x_stride, n0 + n, columns - n);
      if (a.bias) v += load_first(a.bias + n0 + n, columns - n);
      if (a.activation != kIdentity) v = activate(a.activation, v);
      store_first(out + n, v, columns - n);
    }
  }
}

// What one thread multiplies with: the sums of a block of rows, a widened piece, and what the sums start at.
struct Int8Room {
  int32_t *C, *start;
  char* wide;
};

// Blocks [first, last) of W, all rows of A; C: round_up(rows, 16) rows.
template <class T>
static void int8_blocks(const Int8LinearArgs& a, int64_t m0, int64_t rows, const char* A, const float* scales, int64_t first,
                        int64_t last, const Int8Room& room) {
  const int64_t Kp = round_up(a.K, 64), am = int8_row_bytes(a.way, a.K);
  for (int64_t b0 = first; b0 < last; b0 += kInt8Columns / kBlockN) {
    for (int64_t b = b0; b < imin(last, b0 + kInt8Columns / kBlockN); b += kBlocks) {
      const int64_t blocks = imin(kBlocks, last - b);
      const char* B = a.panels + b * Kp * kBlockN;
      int32_t* C = room.C + (b - b0) * kBlockN;
      for (int64_t i = 0; i < blocks * kBlockN; i++)
        room.start[i] = a.way == kInt8Bytes ? int32_t(uint32_t(a.sums[b * kBlockN + i]) * -128u) : 0;
      if (a.way == kInt8Pairs)
        int8_product<DotPairs>(rows, Kp / 4, blocks, A, am, B, room.start, room.wide, C);
      else if (a.way == kInt8Bytes)
        int8_product<DotBytes>(rows, Kp / 4, blocks, A, am, B, room.start, room.wide, C);
#if defined(__AMX_INT8__)
      else
        int8_tile_product(rows, Kp, blocks, A, am, B, C);
#endif
    }
    if (Kp == 0) memset(room.C, 0, size_t(rows * kInt8Columns) * 4);
    int8_epilogue<T>(a, m0, rows, b0 * kBlockN, scales, room.C);
  }
}

template <class T>
static void int8_linear_forward_t(const Int8LinearArgs& a) {
  const int64_t bytes = int8_row_bytes(a.way, a.K), blocks = ceil_div(a.N, kBlockN), threads = num_threads();
  // A block of rows stays in the second-level cache while W passes by; all threads get as many.
  constexpr int64_t unit = 16;
  const int64_t most = imax(48, imin(192, (int64_t(256) << 10) / imax(1, bytes))), units = ceil_div(a.M, unit);
  const int64_t parts = imin(units, a.M <= imin(most, 96) ? 1 : round_up(ceil_div(a.M, most), threads));
  auto begin = [=](int64_t part) { return imin(a.M, units * part / parts * unit); };
  // With few blocks of rows W is shared out as well, after the rows were read once.
  const int64_t groups = ceil_div(a.N, kInt8Columns), group = kInt8Columns / kBlockN;
  const int64_t cuts = parts >= 2 * threads || threads == 1 ? 1 : imin(groups, ceil_div(4 * threads, parts));
  Shared<char> shared(cuts > 1 ? round_up(a.M, unit) * bytes : 0);
  Shared<float> shared_scales(cuts > 1 ? a.M : 0);
  if (cuts > 1)
    parallel(units, [&](int64_t i0, int64_t i1) {
      const int64_t m = i0 * unit;
      int8_rows_of<T>(a, m, imin(a.M, i1 * unit) - m, shared + m * bytes, shared_scales + m);
    });
  int64_t longest = 0;
  for (int64_t p = 0; p < parts; p++) longest = imax(longest, begin(p + 1) - begin(p));
  parallel(parts * cuts, [&](int64_t i0, int64_t i1) {
    const Int8Room room = {scratch<int32_t>(2, round_up(longest, 32) * kInt8Columns), scratch<int32_t>(3, kBlocks * kBlockN),
                           scratch<char>(4, kInt8Steps * kBlockN * 4 * kBlocks)};
    for (int64_t i = i0; i < i1; i++) {
      const int64_t part = i / cuts, c = i % cuts, m0 = begin(part), rows = begin(part + 1) - m0;
      char* A = cuts > 1 ? shared + m0 * bytes : scratch<char>(0, round_up(longest, unit) * bytes);
      float* scales = cuts > 1 ? shared_scales + m0 : scratch<float>(5, longest);
      if (cuts == 1) int8_rows_of<T>(a, m0, rows, A, scales);
      int8_blocks<T>(a, m0, rows, A, scales, groups * c / cuts * group, imin(blocks, groups * (c + 1) / cuts * group), room);
    }
  });
}

static void int8_linear_forward(const Int8LinearArgs& a) {
  a.type == DType::f32 ? int8_linear_forward_t<float>(a) : int8_linear_forward_t<bf16>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
