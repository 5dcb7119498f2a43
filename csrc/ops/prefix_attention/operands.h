// prefix_attention: the operands of its products, packed, and the products.
#pragma once
#include "rows.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Packed operands of this op: panels of kColumns<E> columns, [columns / kColumns][height][kColumns]. For bfloat16 that is
// pack.h's half panel (pairs of rows side by side), which a product may use with any K up to the panel's height.
template <class E>
constexpr int64_t kColumns = sizeof(E) == 2 ? 32 : PW;

#if defined(__x86_64__) && !defined(__FMA__)
constexpr bool kProductsInDouble = true;
// Without FMA every term is rounded before it is added, and an error of a score is a relative one of its exponential: these
// processors add in double.
static void panels_product_in_double(int64_t M, int64_t N, int64_t K, const float* A, int64_t am, const float* B,
                                     int64_t panel, float* C, int64_t ldc) {
  typedef double W __attribute__((vector_size(VL * 8)));
  for (int64_t n = 0; n < N; n += VL)
    for (int64_t m = 0; m < M; m++) {
      const float* b = B + n / PW * panel + n % PW;
      W sum = {};
      for (int64_t k = 0; k < K; k++) sum += double(A[m * am + k]) * __builtin_convertvector(load(b + k * PW), W);
      store(C + m * ldc + n, __builtin_convertvector(sum, V));
    }
}
#else
constexpr bool kProductsInDouble = false;
#endif

// C[M][N] = A B for B in panels of `panel` elements.
template <class E>
static HFK_INLINE void panels_product(int64_t M, int64_t N, int64_t K, const E* A, int64_t am, const E* B, int64_t panel,
                                      float* C, int64_t ldc, FetchAhead& ahead) {
  if (K == 0) {  // nothing is seen: the sums are empty, and no product would write them
    for (int64_t m = 0; m < M; m++) memset(C + m * ldc, 0, size_t(round_up(N, VL)) * 4);
    return;
  }
  if constexpr (sizeof(E) == 4) {
#if defined(__x86_64__) && !defined(__FMA__)
    panels_product_in_double(M, N, K, A, am, B, panel, C, ldc);
#else
    gemm_pieces<false, false>(M, N, K, A, am, B, PW, panel, C, ldc, FetchMeanwhile{&ahead});
#endif
  } else {
    for (int64_t n = 0; n < N; n += 32, B += panel) gemm_store(M, imin(32, N - n), K, A, am, B, C + n, ldc);
  }
}

// Operands of all tasks and key heads, packed once a call: n rows of a prefix as columns (D along k), or as rows.
template <class E>
struct PackedPrefixes {
  int64_t G, size;
  Shared<E> panels;
  HFK_INLINE PackedPrefixes(int64_t tasks, int64_t groups, int64_t elements)
      : G(groups), size(round_up(elements, 32)), panels(tasks * groups * size) {}
  HFK_INLINE E* at(int64_t task, int64_t g) const { return panels.data + (task * G + g) * size; }
};
template <class E>
static HFK_INLINE int64_t columns_panel(int64_t D) {
  return padded_k<E>(D) * kColumns<E>;
}
template <class E>
static HFK_INLINE int64_t columns_size(int64_t D, int64_t n) {
  return packed_size<E>(D, n);
}
template <class E>
static HFK_INLINE int64_t rows_size(int64_t D, int64_t height) {
  return ceil_div(D, kColumns<E>) * height * kColumns<E>;
}

template <class E, class T>
static __attribute__((noinline)) void pack_columns(int64_t n, int64_t D, const T* s, int64_t stride, E* d) {
  pack<E>(D, n, s, int64_t(1), stride, d, 0, ceil_div(n, PW));
}

#if defined(__AVX512BF16__)
// Columns [0, columns) of n rows as one panel of pairs; rows n..height and columns beyond are zero.
static void pair_panel(int64_t n, int64_t height, int64_t columns, const bf16* s, int64_t stride, bf16* d) {
  const __mmask16 low = columns >= 16 ? 0xffff : __mmask16((1u << columns) - 1);
  const __mmask16 high = columns >= 32 ? 0xffff : columns > 16 ? __mmask16((1u << (columns - 16)) - 1) : 0;
  for (int64_t k = 0; k < height; k += 2, d += 64)
    for (int half = 0; half < 2; half++) {
      const __mmask16 first = k < n ? (half ? high : low) : 0, second = k + 1 < n ? (half ? high : low) : 0;
      const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, s + k * stride + 16 * half));
      const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, s + (k + 1) * stride + 16 * half));
      _mm512_storeu_si512(d + 32 * half, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}
#endif

// Rows [0, n) of s become rows [0, n) of every panel; rows up to `height` are zeroed; panels are `panel` elements apart.
template <class E, class T>
static __attribute__((noinline)) void pack_rows(int64_t n, int64_t height, int64_t D, const T* s, int64_t stride, E* d,
                                                int64_t panel) {
  for (int64_t c = 0; c < D; c += kColumns<E>, d += panel) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(E) == 2) {
      pair_panel(n, height, imin(32, D - c), s + c, stride, d);
      continue;
    }
#endif
    if constexpr (sizeof(E) == 4) {
      if (n > 0) pack_panel(n, imin(PW, D - c), s + c, stride, 1, nullptr, d);
      if (height > n) memset(d + n * PW, 0, size_t((height - n) * PW) * 4);
    }
  }
}
// Copies packed rows to the top of an operand with taller panels.
template <class E>
static HFK_INLINE void place_rows(int64_t PP, int64_t D, const E* s, E* d, int64_t panel) {
  for (int64_t c = 0; c < D; c += kColumns<E>, d += panel, s += PP * kColumns<E>)
    memcpy(static_cast<void*>(d), s, size_t(PP * kColumns<E>) * sizeof(E));
}

template <class T>
static HFK_INLINE T* head_at(const HeadsView& v, int64_t b, int64_t h) {
  return static_cast<T*>(v.data) + b * v.row + h * v.head;
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
