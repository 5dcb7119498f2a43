// bf16 product on AMX tiles: 2 x 2 tiles of 16 x 16 float32 accumulators, K in steps of 32.
// A: round_up(M, 16) readable rows of padded_k(K) elements (rows at or beyond M may hold anything); k stride 1.
#pragma once
#include "pack.h"

namespace hfk {
namespace HFK_NAMESPACE {

#if defined(__AMX_TILE__)
// Configures the tile registers for its lifetime and puts back what was there: other libraries use them too.
struct TileConfig {
  struct alignas(64) Layout {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  };
  Layout before;
  HFK_INLINE TileConfig() {
    _tile_storeconfig(&before);
    Layout mine = {};
    mine.palette = 1;
    for (int i = 0; i < 8; i++) {
      mine.column_bytes[i] = 64;
      mine.rows[i] = 16;
    }
    _tile_loadconfig(&mine);
  }
  HFK_INLINE ~TileConfig() {
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

// C[32][32] (rows ldc apart) = or += A B, summed over all of K in the tile registers; two: 32 rows, else 16; wide: 32
// columns, else 16. A load of a tile that is not in the first-level cache holds up the products behind it, so B is fetched
// two steps ahead. The rows of A do without: a step's lines are followed by those of the next, which the processor fetches
// itself. next (or null): 32 rows as far apart that come next, fetched into the second-level cache.
template <bool two, bool wide>
static HFK_INLINE void tile_piece(int64_t K, const bf16* A, int64_t am, const bf16* B, float* C, int64_t ldc, bool add,
                                  const bf16* next = nullptr) {
  if (add) {
    _tile_loadd(0, C, ldc * 4);
    if (wide) _tile_loadd(1, C + 16, ldc * 4);
    if (two) _tile_loadd(2, C + 16 * ldc, ldc * 4);
    if (two && wide) _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
  } else {
    _tile_zero(0);
    if (wide) _tile_zero(1);
    if (two) _tile_zero(2);
    if (two && wide) _tile_zero(3);
  }
  for (int64_t k = 0; k < K; k += 32) {
    if (k + 64 < K) {
      const bf16* ahead = B + (k + 64) * 32;
#pragma GCC unroll 32
      for (int i = 0; i < 32; i++) __builtin_prefetch(ahead + i * 32, 0, 3);
    }
    if (next)
#pragma GCC unroll 32
      for (int i = 0; i < 32; i++) prefetch_l2(next + i * am + k);
    _tile_loadd(6, B + k * 32, 128);
    _tile_loadd(4, A + k, am * 2);
    if (wide) _tile_loadd(7, B + k * 32 + 32, 128);
    if (two) _tile_loadd(5, A + 16 * am + k, am * 2);
    _tile_dpbf16ps(0, 4, 6);
    if (wide) _tile_dpbf16ps(1, 4, 7);
    if (two) _tile_dpbf16ps(2, 5, 6);
    if (two && wide) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, C, ldc * 4);
  if (wide) _tile_stored(1, C + 16, ldc * 4);
  if (two) _tile_stored(2, C + 16 * ldc, ldc * 4);
  if (two && wide) _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
}

// C[m * ldc + n] = (A B)[m][n]; full vectors are written, as by the float version. next (or null): rows of A of the product
// behind this one, which are fetched meanwhile.
static __attribute__((noinline)) void gemm_store(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am, const bf16* B,
                                                 float* C, int64_t ldc, const bf16* next = nullptr) {
  TileConfig config;
  alignas(64) float edge[32 * 32];
  const int64_t Kp = padded_k<bf16>(K);
  for (int64_t n = 0; n < N; n += 32) {
    const bf16* b = B + n * Kp;
    const bool wide = N - n > 16;
    for (int64_t m = 0; m < M; m += 32) {
      const int64_t rows = imin(32, M - m);
      const bool two = rows > 16, whole = rows % 16 == 0;
      const bf16* a = A + m * am;
      // The first panel's products come to rows that lie in memory still.
      const bf16* later = n > 0 ? nullptr : m + 32 < M ? a + 32 * am : next;
      float* c = C + m * ldc + n;
      float* d = whole ? c : edge;
      const int64_t ldd = whole ? ldc : 32;
      if (two && wide)
        tile_piece<true, true>(Kp, a, am, b, d, ldd, false, later);
      else if (two)
        tile_piece<true, false>(Kp, a, am, b, d, ldd, false, later);
      else if (wide)
        tile_piece<false, true>(Kp, a, am, b, d, ldd, false, later);
      else
        tile_piece<false, false>(Kp, a, am, b, d, ldd, false, later);
      if (!whole)
        for (int64_t i = 0; i < rows; i++) memcpy(c + i * ldc, edge + i * 32, size_t(wide ? 32 : 16) * 4);
    }
  }
}
#endif

}  // namespace HFK_NAMESPACE
}  // namespace hfk
