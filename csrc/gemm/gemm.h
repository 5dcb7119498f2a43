// The matrix products of every element type (float32.h, amx.h, dpbf16.h), and how a block of rows is brought to them.
#pragma once
#include "amx.h"
#include "dpbf16.h"
#include "float32.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rows of a block as the product wants them: [rows][K] of E. Points into `source` where that already fits, else copies
// into `buffer` (room for round_up(rows, 16) * padded_k<E>(K) elements), converting, gathering and padding.
// index: row numbers of `source`, or null for rows 0, 1, 2, ...
template <class E, class T>
static HFK_INLINE const E* rows_for_product(int64_t rows, int64_t K, const T* source, int64_t stride, const int32_t* index,
                                            E* buffer, int64_t* out_stride) {
  const int64_t Kp = padded_k<E>(K);
  if constexpr (sizeof(E) == sizeof(T)) {
    if (index == nullptr && (sizeof(E) == 4 || (rows % 16 == 0 && Kp == K))) {
      *out_stride = stride;
      return reinterpret_cast<const E*>(source);
    }
  }
  for (int64_t m = 0; m < rows; m++) {
    const T* s = source + (index ? int64_t(index[m]) : m) * stride;
    E* d = buffer + m * Kp;
    int64_t k = 0;
    for (; k + VL <= K; k += VL) store(d + k, load(s + k));
    for (; k < Kp; k += VL) store_first(d + k, k < K ? load_first(s + k, K - k) : zero(), Kp - k);
  }
  *out_stride = Kp;
  return buffer;
}

// A product whose columns are cut into `count` parts, each of which asks for other memory.
static HFK_INLINE void gemm_store_ahead(int64_t M, int64_t N, int64_t K, const float* A, int64_t am, const float* B,
                                        float* C, int64_t ldc, const Ahead* ahead, int64_t count) {
  const int64_t panels = ceil_div(N, PW);
  for (int64_t i = 0; i < count; i++) {
    const int64_t first = panels * i / count * PW, end = imin(N, panels * (i + 1) / count * PW);
    if (end > first) gemm_store(M, end - first, K, A, am, B + first * K, C + first, ldc, ahead[i]);
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
