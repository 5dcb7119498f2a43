// bf16 product with vdpbf16ps: A rows of padded_k(K) elements with k stride 1, pairs broadcast as dwords.
#pragma once
#include "pack.h"

namespace hfk {
namespace HFK_NAMESPACE {

#if defined(__AVX512BF16__) && !defined(__AMX_TILE__)
template <int MR, int NV, class Epi>
static HFK_INLINE void tile(int64_t K, const bf16* A, int64_t am, const bf16* B, Epi&& epi) {
  __m512 c[MR][NV];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) c[i][j] = _mm512_setzero_ps();
  for (int64_t k = 0; k < K; k += 2) {
    __m512bh b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) b[j] = (__m512bh)_mm512_loadu_si512(B + pair_index(K, k, VL * j));
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
      int32_t pair;
      memcpy(&pair, A + i * am + k, 4);
      __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) c[i][j] = _mm512_dpbf16_ps(c[i][j], a, b[j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) epi(i, VL * j, (V)c[i][j]);
}

template <int NV, class Epi>
static void panel_product(int64_t M, int64_t n0, int64_t K, const bf16* A, int64_t am, const bf16* B, Epi& epi) {
  int64_t m = 0;
  auto at = [&](int64_t base) __attribute__((always_inline)) {
    return [&epi, base, n0](int i, int j, V v) __attribute__((always_inline)) { epi(base + i, n0 + j, v); };
  };
  for (; m + 6 <= M; m += 6) tile<6, NV>(K, A + m * am, am, B, at(m));
  for (; m + 2 <= M; m += 2) tile<2, NV>(K, A + m * am, am, B, at(m));
  for (; m < M; m++) tile<1, NV>(K, A + m * am, am, B, at(m));
}

template <class Epi>
static HFK_INLINE void gemm(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am, int64_t, const bf16* B, Epi&& epi) {
  const int64_t Kp = padded_k<bf16>(K);
  for (int64_t n0 = 0; n0 < N; n0 += PW, B += Kp * PW) {
    switch (imin(4, ceil_div(N - n0, VL))) {
      case 4: panel_product<4>(M, n0, Kp, A, am, B, epi); break;
      case 3: panel_product<3>(M, n0, Kp, A, am, B, epi); break;
      case 2: panel_product<2>(M, n0, Kp, A, am, B, epi); break;
      default: panel_product<1>(M, n0, Kp, A, am, B, epi);
    }
  }
}
static __attribute__((noinline)) void gemm_store(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am, const bf16* B,
                                                 float* C, int64_t ldc) {
  gemm(M, N, K, A, am, 1, B, [=](int64_t m, int64_t n, V v) __attribute__((always_inline)) { store(C + m * ldc + n, v); });
}
#endif

}  // namespace HFK_NAMESPACE
}  // namespace hfk
