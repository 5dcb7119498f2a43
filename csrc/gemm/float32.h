// The float32 matrix product: rows of A times packed panels of B (pack.h), every tile of the result handed to `epi` in
// registers: epi(m, n, v) for every m < M and every n = 0, VL, 2 VL, ... below N; lanes of v at or beyond N are 0. Each
// result is a sum over k in one fixed order, so its bits do not depend on M, N or on how the caller cuts the rows.
#pragma once
#include "pack.h"

namespace hfk {
namespace HFK_NAMESPACE {

// What it asks for in the steps of one panel, one after the other. Its rows are ldb apart; when that is PW, another may
// follow it.
struct AheadSteps {
  const char* at;
  int64_t step;
  HFK_INLINE void operator()() {
    prefetch_l2(at);
    at += step;
  }
};
static HFK_INLINE AheadSteps steps_of(Ahead more, const float* B, int64_t ldb, int64_t K, int64_t tiles) {
  if (!more.at) more = ahead_of(ldb == PW ? B + K * PW : B, ldb == PW ? K * PW : 0);
  return {more.at, ceil_div(more.bytes, imax(1, tiles * K))};
}

// C[MR][NV * VL], all of it in registers. 24 accumulators of the 32 (or 12 of the 16) registers. Every k calls `ahead`.
// side: the MR rows of A stand side by side, A[k * as + i], else one after the other, A[i * as + k]. (With both strides free
// gcc 12 stores every accumulator in every step.)
template <bool side, int MR, int NV, class Steps, class Epi>
static HFK_INLINE void tile(int64_t K, const float* A, int64_t as, const float* B, int64_t ldb, Steps& ahead, int64_t m0,
                            int64_t n0, Epi epi) {
  V c[MR][NV];
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) c[i][j] = zero();
  for (int64_t k = 0; k < K; k++) {
    V b[NV];
    ahead();
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) b[j] = load(B + k * ldb + VL * j);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
      V a = broadcast(side ? A[k * as + i] : A[i * as + k]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) c[i][j] = fma(a, b[j], c[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) epi(m0 + i, n0 + VL * j, c[i][j]);
}

// One panel.
template <bool side, int NV, class More, class Epi>
static void panel_product(int64_t M, int64_t n0, int64_t K, const float* A, int64_t as, const float* B, int64_t ldb,
                          More more, Epi epi) {
  constexpr int MR = (VL == 16 && NV <= 2) ? 12 : 6;
  const int64_t am = side ? 1 : as;
  auto ahead = steps_of(more, B, ldb, K, ceil_div(M, MR));
  int64_t m = 0;
  for (; m + MR <= M; m += MR) tile<side, MR, NV>(K, A + m * am, as, B, ldb, ahead, m, n0, epi);
  if constexpr (MR == 12)
    for (; m + 6 <= M; m += 6) tile<side, 6, NV>(K, A + m * am, as, B, ldb, ahead, m, n0, epi);
  // Fewer rows than four do not keep the multipliers busy: each sum waits for its own last step.
  for (; m + 4 <= M; m += 4) tile<side, 4, NV>(K, A + m * am, as, B, ldb, ahead, m, n0, epi);
  for (; m + 2 <= M; m += 2) tile<side, 2, NV>(K, A + m * am, as, B, ldb, ahead, m, n0, epi);
  for (; m < M; m++) tile<side, 1, NV>(K, A + m * am, as, B, ldb, ahead, m, n0, epi);
}

// The panel of columns n0 to N.
template <bool side, class More, class Epi>
static HFK_INLINE void panel(int64_t M, int64_t n0, int64_t N, int64_t K, const float* A, int64_t as, const float* B,
                             int64_t ldb, More more, Epi epi) {
  switch (imin(NV_PANEL, ceil_div(N - n0, VL))) {
#if defined(__AVX512F__)
    case 4: panel_product<side, 4>(M, n0, K, A, as, B, ldb, more, epi); break;
    case 3: panel_product<side, 3>(M, n0, K, A, as, B, ldb, more, epi); break;
#endif
    case 2: panel_product<side, 2>(M, n0, K, A, as, B, ldb, more, epi); break;
    default: panel_product<side, 1>(M, n0, K, A, as, B, ldb, more, epi);
  }
}

// C[m * ldc + n] = (A B)[m][n], or += with add; full vectors are written, so ldc >= round_up(N, VL) or the columns
// beyond N must be writable. One instantiation for all callers: prefer it to an own epilogue, the buffer stays in cache.
// Rows of A are one after the other for gemm_store, A[m * am + k], and side by side for gemm_add, A[k * ak + m].
// A panel is taken in pieces of kPieceK rows, which stay in the first-level cache while all rows of A pass by.
constexpr int64_t kPieceK = 32768 / (PW * 4);

template <bool add>
struct Put {
  float* C;
  int64_t ldc;
  HFK_INLINE void operator()(int64_t m, int64_t n, V v) const {
    float* c = C + m * ldc + n;
    store(c, add ? load(c) + v : v);
  }
};

template <bool side, bool add, class More = Ahead>
static HFK_INLINE void gemm_pieces(int64_t M, int64_t N, int64_t K, const float* A, int64_t as, const float* B, int64_t ldb,
                                   int64_t panel_stride, float* C, int64_t ldc, More ahead = {}) {
  if (!add && K == 0)  // an empty sum
    for (int64_t m = 0; m < M; m++) memset(C + m * ldc, 0, size_t(round_up(N, VL)) * 4);
  const int64_t parts = imax(1, ceil_div(N, PW) * ceil_div(K, kPieceK));
  int64_t part = 0;
  for (int64_t n0 = 0; n0 < N; n0 += PW, B += panel_stride)
    for (int64_t k = 0; k < K; k += kPieceK) {
      const int64_t kc = imin(kPieceK, K - k);
      const float* a = A + (side ? k * as : k);
      const More more = ahead.part(part++, parts);
      if (add || k > 0)
        panel<side>(M, n0, N, kc, a, as, B + k * ldb, ldb, more, Put<true>{C, ldc});
      else
        panel<side>(M, n0, N, kc, a, as, B, ldb, more, Put<false>{C, ldc});
    }
}
// C += A B for one panel of at most PW columns, where the rows of A stand side by side in groups: element (i, k) is
// A[(i / kGroup * stride + k) * kGroup + i % kGroup]. What a tile reads of it is contiguous.
constexpr int64_t kGroup = 6;

template <int NV>
static void grouped_panel(int64_t M, int64_t K, const float* A, int64_t stride, const float* B, int64_t ldb, Put<true> put) {
  AheadSteps ahead = steps_of({}, B, ldb, K, ceil_div(M, kGroup));
  int64_t m = 0;
  for (; m + kGroup <= M; m += kGroup, A += kGroup * stride) tile<true, kGroup, NV>(K, A, kGroup, B, ldb, ahead, m, 0, put);
  for (; m < M; m++, A++) tile<true, 1, NV>(K, A, kGroup, B, ldb, ahead, m, 0, put);
}
static __attribute__((noinline)) void gemm_add_grouped(int64_t M, int64_t N, int64_t K, const float* A, int64_t stride,
                                                       const float* B, int64_t ldb, float* C, int64_t ldc) {
  for (int64_t k = 0; k < K; k += kPieceK, A += kPieceK * kGroup, B += kPieceK * ldb) {
    const int64_t kc = imin(kPieceK, K - k);
    switch (ceil_div(N, VL)) {
#if defined(__AVX512F__)
      case 4: grouped_panel<4>(M, kc, A, stride, B, ldb, {C, ldc}); break;
      case 3: grouped_panel<3>(M, kc, A, stride, B, ldb, {C, ldc}); break;
#endif
      case 2: grouped_panel<2>(M, kc, A, stride, B, ldb, {C, ldc}); break;
      default: grouped_panel<1>(M, kc, A, stride, B, ldb, {C, ldc});
    }
  }
}

static __attribute__((noinline)) void gemm_store(int64_t M, int64_t N, int64_t K, const float* A, int64_t am, const float* B,
                                                 int64_t ldb, int64_t panel_stride, float* C, int64_t ldc,
                                                 Ahead ahead = {}) {
  gemm_pieces<false, false>(M, N, K, A, am, B, ldb, panel_stride, C, ldc, ahead);
}
static __attribute__((noinline)) void gemm_add(int64_t M, int64_t N, int64_t K, const float* A, int64_t ak, const float* B,
                                               int64_t ldb, int64_t panel_stride, float* C, int64_t ldc, Ahead ahead = {}) {
  gemm_pieces<true, true>(M, N, K, A, ak, B, ldb, panel_stride, C, ldc, ahead);
}
// The same for an operand packed by pack.h.
static HFK_INLINE void gemm_store(int64_t M, int64_t N, int64_t K, const float* A, int64_t am, const float* B, float* C,
                                  int64_t ldc, Ahead ahead = {}) {
  gemm_store(M, N, K, A, am, B, PW, K * PW, C, ldc, ahead);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
