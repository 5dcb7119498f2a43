// prefix_attention backward, in parts: operands of its products, and the gradient of the scores of one query row.
#pragma once
#include "operands.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rows as the product wants them, side by side: the products below walk down their columns, and rows whole tokens apart
// would share a few sets of the first-level cache.
template <class E, class T>
static HFK_INLINE const E* near_rows(int64_t rows, int64_t D, const T* s, int64_t stride, E* buffer, int64_t* out_stride) {
  if constexpr (sizeof(E) == 4 && sizeof(T) == 4) {
    for (int64_t m = 0; m < rows; m++)
      for (int64_t d = 0; d < D; d += VL) store_first(buffer + m * D + d, load_first(s + m * stride + d, D - d), D - d);
    *out_stride = D;
    return buffer;
  }
  return rows_for_product<E>(rows, D, s, stride, nullptr, buffer, out_stride);
}

#if defined(__AVX512BF16__)
// C += A B; M and N are rounded up to 16 and 32 (A, B and C have that much room), K is at most one block of queries.
static __attribute__((noinline)) void gemm_add_pairs(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am,
                                                     const bf16* B, float* C, int64_t ldc) {
  const int64_t Kp = padded_k<bf16>(K);
#if defined(__AMX_TILE__)
  TileConfig config;
  for (int64_t n = 0; n < N; n += 32, B += Kp * 32)
    for (int64_t m = 0; m < M; m += 32)
      if (M - m > 16)
        tile_piece<true, true>(Kp, A + m * am, am, B, C + m * ldc + n, ldc, true);
      else
        tile_piece<false, true>(Kp, A + m * am, am, B, C + m * ldc + n, ldc, true);
#else
  for (int64_t n = 0; n < N; n += 32, B += Kp * 32)
    gemm(M, 32, K, A, am, 1, B, [=](int64_t m, int64_t j, V v) __attribute__((always_inline)) {
      store(C + m * ldc + n + j, load(C + m * ldc + n + j) + v);
    });
#endif
}

// out[D rounded up to 32][padded rows] = the transpose of `rows` rows of D elements: pairs first, then 16 x 16 dwords.
static void transpose_rows(int64_t rows, int64_t D, const bf16* s, int64_t stride, bf16* panel, bf16* out) {
  const int64_t Kp = padded_k<bf16>(rows);
  for (int64_t c = 0; c < D; c += 32) {
    pair_panel(rows, Kp, imin(32, D - c), s + c, stride, panel);
    for (int64_t d = 0; d < 32; d += 16)
      for (int64_t k = 0; k < Kp; k += 32) transpose16(panel + k * 32 + d * 2, 128, out + (c + d) * Kp + k, Kp * 2, 16);
  }
}
// Rows of `width` bf16 become panels of pairs; columns is a multiple of 32.
static void pair_rows(int64_t rows, int64_t columns, const bf16* s, int64_t width, bf16* d) {
  const int64_t Kp = padded_k<bf16>(rows);
  for (int64_t n = 0; n < columns; n += 32, d += Kp * 32) pair_panel(rows, Kp, 32, s + n, width, d);
}
#endif

// out[j][d] = g[d][j] * factor for j < n, d < D; g has readable columns up to n rounded up to 16.
template <class T>
static void write_transposed(const float* g, int64_t width, int64_t n, int64_t D, float factor, T* out, int64_t stride) {
#if defined(__AVX512F__)
  alignas(64) float t[16 * 16];
  for (int64_t d = 0; d < D; d += 16)
    for (int64_t j = 0; j < n; j += 16) {
      transpose16(g + d * width + j, width * 4, t, 64, int(imin(16, D - d)));
      for (int64_t l = 0; l < imin(16, n - j); l++)
        store_first(out + (j + l) * stride + d, load(t + l * 16) * factor, D - d);
    }
#else
  for (int64_t j = 0; j < n; j++)
    for (int64_t d = 0; d < D; d++) from_float(g[d * width + j] * factor, out[j * stride + d]);
#endif
}

// The t of the largest p: the gradient of the likeliest column's probability.
static HFK_INLINE float likeliest_gradient(const float* p, const float* t, int64_t end) {
  V highest = broadcast(-1.f), its_gradient = zero();
  for (int64_t n = 0; n < end; n += VL) {
    const V weight = load(p + n);
    its_gradient = weight > highest ? load(t + n) : its_gradient;
    highest = vmax(weight, highest);
  }
  int best = 0;
  for (int i = 1; i < VL; i++)
    if (highest[i] > highest[best]) best = i;
  return its_gradient[best];
}
// Sum of p (t - base).
static HFK_INLINE float dot_rows(const float* p, const float* t, int64_t end, float base) {
  V a = zero(), b = zero();
  int64_t n = 0;
  for (; n + 2 * VL <= end; n += 2 * VL) {
    a = fma(load(p + n), load(t + n) - base, a);
    b = fma(load(p + n + VL), load(t + n + VL) - base, b);
  }
  for (; n < end; n += VL) a = fma(load(p + n), load(t + n) - base, a);
  return hsum(a + b);
}
// p *= factor; t = p * (t - sum p t), the gradient of the scores. low_p and low_t (or null): both rounded, instead.
// In float32 all t are first moved by the likeliest column's, which changes nothing but the rounding: where that column
// has nearly all the weight, t - sum p t is small against t, and would cancel. bfloat16 rounds more than that afterwards.
static HFK_INLINE void score_gradient(float* p, float* t, int64_t end, float factor, bool fine, bf16* low_p = nullptr,
                                      bf16* low_t = nullptr) {
  const float base = fine ? likeliest_gradient(p, t, end) : 0.f, delta = factor * dot_rows(p, t, end, base);
  for (int64_t n = 0; n < end; n += VL) {
    const V x = load(p + n) * factor, y = x * (load(t + n) - base - delta);
    low_p ? store(low_p + n, x) : store(p + n, x);
    low_p ? store(low_t + n, y) : store(t + n, y);
  }
}
static HFK_INLINE void clear(float* s, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += VL) store(s + n, zero());
}

// One query row after `softmax_rows`: s becomes the probabilities that weigh the values, t (dO . v) the gradient of the
// scores; with low_s and low_t both rounded there as well (or instead).
static __attribute__((noinline)) void gradient_row(const PrefixAttentionBackwardArgs& a, const Dropout& drop, float* s,
                                                   float* t, float factor, int64_t P, int64_t PP, int64_t visible,
                                                   int64_t seen, int64_t end, int64_t line, bf16* low_s, bf16* low_t) {
  // The products wrote whole vectors up to P and `seen`; what is behind them is not written yet.
  clear(t, round_up(P, VL), PP);
  clear(t + PP, round_up(seen, VL), end);
  const uint32_t hash = a.dropout_on ? dropout_row(drop, uint32_t(line)) : 0;
  if (a.dropout_on) drop_both(drop, hash, t, PP, end);
  if (a.form == PrefixForm::softmax) {
    if (a.grad_gate)
      for (int64_t n = 0; n < PP; n += VL) store(t + n, load(t + n) + a.grad_gate[line]);
    if (low_s && !a.dropout_on && !a.grad_scores) return score_gradient(s, t, PP + end, factor, false, low_s, low_t);
    score_gradient(s, t, PP + end, factor, !low_s);
  } else {
    score_gradient(s + PP, t + PP, end, factor, !low_s);
    if (PP && a.form == PrefixForm::no_gating) score_gradient(s, t, PP, 1.f, !low_s);
    if (PP && a.form == PrefixForm::relu)
      for (int64_t n = 0; n < PP; n += VL) store(t + n, load(s + n) <= zero() ? zero() : load(t + n));
  }
  if (a.dropout_on) drop_both(drop, hash, s, PP, end);
  if (a.grad_scores) {
    float* out = a.grad_scores + line * a.Tk;
    for (int64_t j = 0; j < a.Tk; j++) out[j] = j < visible ? t[PP + j] : 0.f;
  }
  for (int64_t n = 0; low_s && n < PP + end; n += VL) {
    store(low_s + n, load(s + n));
    store(low_t + n, load(t + n));
  }
}

// Sums over a block of mb queries, [D][columns] += rows^T weights: for the PP columns of the prefix and the `end` real ones
// behind them, each where it is wanted (not null). Weights are rows `width` apart, in float32 or rounded.
template <class E>
static void add_query_sums(int64_t mb, int64_t D, int64_t PP, int64_t end, const E* rows, int64_t stride, const E* weights,
                           int64_t width, E* pairs, E* turned, float* prefix, int64_t prefix_width, float* real) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(E) == 2) {
    const int64_t Kp = padded_k<E>(mb);
    transpose_rows(mb, D, rows, stride, turned + round_up(D, 32) * Kp, turned);
    pair_rows(mb, PP + end, weights, width, pairs);
    if (prefix) gemm_add_pairs(D, PP, mb, turned, Kp, pairs, prefix, prefix_width);
    if (real) gemm_add_pairs(D, end, mb, turned, Kp, pairs + PP * Kp, real, width);
  }
#endif
  if constexpr (sizeof(E) == 4) {
    if (prefix) gemm_add(D, PP, mb, rows, stride, weights, width, PW, prefix, prefix_width);
    if (real) gemm_add(D, end, mb, rows, stride, weights + PP, width, PW, real, width);
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
