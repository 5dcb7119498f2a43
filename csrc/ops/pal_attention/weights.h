// pal_attention backward, the weights: gradient[out][in] = the sum over a task's tokens of coefficient[out] source[in].
// Cut into squares of the gradient, each one sum over the tokens in order.
#pragma once
#include "forward.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Gradients of rank rows, [B * T][Sp] each: projected, mixed, query, key, value, encoded; and of the decoder's output.
template <class T>
struct PalGrads {
  Shared<T> projected, mixed, query, key, value, encoded, decoded;
  explicit PalGrads(const PalArgs& a)
      : projected(a.pieces > 5 ? a.B * a.T * a.Sp : 0), mixed(a.B * a.T * a.Sp), query(a.B * a.T * a.Sp),
        key(a.B * a.T * a.Sp), value(a.B * a.T * a.Sp), encoded(a.B * a.T * a.Sp), decoded(a.slope ? a.B * a.T * a.D : 0) {}
};

constexpr int64_t kPalWeightSide = 256;
constexpr int64_t kPalWeightTokens = 256;  // that one product sums

// The tokens of every task, in order: token[start[t] .. start[t + 1]).
struct PalTokens {
  Shared<int32_t> token;
  Shared<int64_t> start;
  explicit PalTokens(const PalArgs& a) : token(a.B * a.T), start(a.tasks + 1) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.tasks; t++) {
      start[t] = n;
      for (int64_t b = 0; b < a.B; b++)
        for (int64_t i = 0; a.sequence_task[b] == t && i < a.T; i++) token[n++] = int32_t(b * a.T + i);
    }
    start[a.tasks] = n;
  }
};

// Columns [0, columns) of the given rows as floats, kPalWeightSide apart, 0 up to a full vector.
template <class T>
static void pal_float_rows(int64_t rows, int64_t columns, const T* s, int64_t stride, const int32_t* index, float* d) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n += VL)
      store(d + m * kPalWeightSide + n, load_first(s + index[m] * stride + n, columns - n));
}

#if defined(__AVX512BF16__)
// Columns [0, columns) of the given rows, transposed: the left-hand operand, [columns rounded up to 16][padded_k(rows)].
static void pal_transposed_rows(int64_t rows, int64_t columns, const bf16* s, int64_t stride, const int32_t* index,
                                bf16* pairs, bf16* A) {
  const int64_t Kp = padded_k<bf16>(rows);
  pal_pair_rows(rows, columns, s, stride, index, pairs);
  for (int64_t n = 0; n < columns; n += 16)
    for (int64_t k = 0; k < Kp; k += 32)
      transpose16(pairs + n / PW * PW * Kp + pair_index(Kp, k, n % PW), 128, A + n * Kp + k, Kp * 2, 16);
}
#endif

// sums [rows][kPalWeightSide] = coefficients^T source over the given tokens; rows and columns at most kPalWeightSide.
template <class E, class T>
static void pal_weight_sums(const int32_t* token, int64_t tokens, int64_t rows, const T* coefficients, int64_t cs,
                            int64_t columns, const T* source, int64_t ss, float* sums) {
  constexpr int64_t side = kPalWeightSide;
  if (sizeof(E) == 4 || tokens == 0) memset(sums, 0, size_t(rows * side) * 4);
  if constexpr (sizeof(E) == 4) {
    constexpr int64_t step = 64;
    float *A = scratch<float>(0, step * side), *B = scratch<float>(1, step * side);
    for (int64_t k = 0; k < tokens; k += step) {
      const int64_t kc = imin(step, tokens - k);
      pal_float_rows(kc, rows, coefficients, cs, token + k, A);
      pal_float_rows(kc, columns, source, ss, token + k, B);
      gemm_add(rows, columns, kc, A, side, B, side, PW, sums, side);
    }
  } else {
#if defined(__AVX512BF16__)
    constexpr int64_t step = kPalWeightTokens;
    E *A = scratch<E>(0, side * step), *B = scratch<E>(1, packed_size<E>(step, side));
    float* more = scratch<float>(4, side * side);
    for (int64_t k = 0; k < tokens; k += step) {
      const int64_t kc = imin(step, tokens - k);
      pal_transposed_rows(kc, rows, coefficients, cs, token + k, B, A);
      pal_pair_rows(kc, columns, source, ss, token + k, B);
      gemm_store(rows, columns, kc, A, padded_k<E>(kc), B, k == 0 ? sums : more, side);
      for (int64_t n = 0; k > 0 && n < rows * side; n += VL) store(sums + n, load(sums + n) + load(more + n));
    }
#endif
  }
}

// Column sums over the given tokens.
template <class T>
static void pal_bias_sums(const int32_t* token, int64_t tokens, const T* source, int64_t stride, int64_t N, T* gradient) {
  for (int64_t n = 0; n < N; n += VL) {
    V sum = zero();
    for (int64_t i = 0; i < tokens; i++) sum += load_first(source + token[i] * stride + n, N - n);
    store_first(gradient + n, sum, N - n);
  }
}

template <class T, class E>
static void pal_backward_weights(const PalArgs& a, const PalGrads<T>& g) {
  const PalTokens tokens(a);
  // Every weight has S rows or columns, and at most max(D, S) of the other.
  const int64_t squares = ceil_div(a.S, kPalWeightSide) * ceil_div(imax(a.D, a.S), kPalWeightSide);
  const int64_t items = kPalFamilies * squares;
  const T* coefficients[kPalMatrices] = {g.encoded.data, g.query.data,   g.key.data,
                                         g.value.data,   g.decoded.data, g.projected.data};
  parallel(a.tasks * items, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t task = i / items, square = i % items % squares;
      const int family = int(i % items / squares), matrix = family % kPalMatrices;
      const int64_t out = pal_outputs(a, matrix), in = pal_inputs(a, matrix), across = ceil_div(in, kPalWeightSide);
      const int64_t r0 = square / across * kPalWeightSide, c0 = square % across * kPalWeightSide;
      T* gradient = static_cast<T*>(a.task[task].grad[family]);
      const int32_t* token = tokens.token + tokens.start[task];
      const int64_t count = tokens.start[task + 1] - tokens.start[task];
      if (gradient == nullptr || r0 >= out) continue;
      // The decoder's output has gradients of its own only behind an activation.
      const bool plain = matrix == kPalDecoder && a.slope == nullptr;
      const T* from = plain ? static_cast<const T*>(a.grad) : coefficients[matrix];
      const int64_t cs = plain ? a.grad_stride : matrix == kPalDecoder ? a.D : a.Sp;
      if (family >= kPalMatrices) {
        if (square == 0) pal_bias_sums(token, count, from, cs, out, gradient);
        continue;
      }
      const int piece = matrix == kPalOutput ? 4 : matrix != kPalDecoder ? 0 : a.task[task].weight[kPalOutput] ? 5 : 4;
      const T* source = matrix == kPalEncoder ? static_cast<const T*>(a.x) : pal_hidden<T>(a, piece, 0);
      const int64_t ss = matrix == kPalEncoder ? a.x_stride : a.Sp;
      const int64_t rows = imin(kPalWeightSide, out - r0), columns = imin(kPalWeightSide, in - c0);
      float* sums = scratch<float>(3, kPalWeightSide * kPalWeightSide);
      pal_weight_sums<E>(token, count, rows, from + r0, cs, columns, source + c0, ss, sums);
      pal_keep<T>(rows, columns, columns, sums, kPalWeightSide, nullptr, gradient + r0 * in + c0, in);
    }
  });
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
