// The float32 product for ranks up to 8, as dot products along K: a panel of 8 columns would leave lanes idle.
#pragma once
#include "../base/vec.h"

namespace hfk {
namespace HFK_NAMESPACE {

constexpr int64_t kDotRank = 8;

// out[m][j] = sum_k A[m][k] W[j][k] for j < 8, vectorised along k: no lane is idle as in a panel of 8 columns.
template <int MR>
static HFK_INLINE void dot8(int64_t K, const float* A, int64_t am, const float* W, int64_t ldw, float* out) {
  V c[MR][8];
#pragma GCC unroll 3
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) c[i][j] = zero();
  auto step = [&](int64_t k, int64_t left) __attribute__((always_inline)) {
    V a[MR];
#pragma GCC unroll 3
    for (int i = 0; i < MR; i++) a[i] = left >= VL ? load(A + i * am + k) : load_first(A + i * am + k, left);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      V w = load(W + j * ldw + k);
#pragma GCC unroll 3
      for (int i = 0; i < MR; i++) c[i][j] = fma(a[i], w, c[i][j]);
    }
  };
  int64_t k = 0;
  for (; k + VL <= K; k += VL) step(k, VL);
  if (k < K) step(k, K - k);
#pragma GCC unroll 3
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) out[i * 8 + j] = hsum(c[i][j]);
}
static __attribute__((noinline)) void dot8_rows(int64_t M, int64_t K, const float* A, int64_t am, const float* W,
                                                int64_t ldw, float* out, int64_t ldo) {
  constexpr int MR = VL == 16 ? 3 : 1;
  float sums[MR * 8];
  // A vector that is wider than 8 is filled up: whatever would stand there takes part in what follows, slowly if it is
  // subnormal.
  auto keep = [&](int64_t m, const float* s) __attribute__((always_inline)) {
    memcpy(out + m * ldo, s, 32);
    for (int64_t j = 8; j < VL; j++) out[m * ldo + j] = 0.f;
  };
  int64_t m = 0;
  for (; m + MR <= M; m += MR) {
    dot8<MR>(K, A + m * am, am, W, ldw, sums);
    for (int i = 0; i < MR; i++) keep(m + i, sums + i * 8);
  }
  for (; m < M; m++) {
    dot8<1>(K, A + m * am, am, W, ldw, sums);
    keep(m, sums);
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
