// int8 product on AMX tiles: 2 x 2 tiles of 16 x 16 int32 sums, K in steps of 64. Both operands are signed. A tile of x is
// 16 rows of 64 bytes, one of W 16 groups of 4 inputs with their 16 outputs: a kilobyte of the panel as it lies (int8.h).
#pragma once
#include "amx.h"
#include "int8.h"

namespace hfk {
namespace HFK_NAMESPACE {

#if defined(__AMX_INT8__)
// 32 rows (two) or 16, two blocks (wide) or one, over all of K. A: that many readable rows.
template <bool two, bool wide>
static HFK_INLINE void int8_tile_piece(int64_t Kp, const char* A, int64_t am, const char* B, int32_t* C) {
  constexpr int64_t ldc = kInt8Columns;
  const char* second = B + Kp * kBlockN;
  _tile_zero(0);
  if (wide) _tile_zero(1);
  if (two) _tile_zero(2);
  if (two && wide) _tile_zero(3);
  for (int64_t k = 0; k < Kp; k += 64) {
    _tile_loadd(6, B + k * kBlockN, 64);
    _tile_loadd(4, A + k, am);
    if (wide) _tile_loadd(7, second + k * kBlockN, 64);
    if (two) _tile_loadd(5, A + 16 * am + k, am);
    _tile_dpbssd(0, 4, 6);
    if (wide) _tile_dpbssd(1, 4, 7);
    if (two) _tile_dpbssd(2, 5, 6);
    if (two && wide) _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, C, ldc * 4);
  if (wide) _tile_stored(1, C + kBlockN, ldc * 4);
  if (two) _tile_stored(2, C + 16 * ldc, ldc * 4);
  if (two && wide) _tile_stored(3, C + 16 * ldc + kBlockN, ldc * 4);
}

// A and C: round_up(rows, 16) rows; whole tiles are read and written.
static __attribute__((noinline)) void int8_tile_product(int64_t rows, int64_t Kp, int64_t blocks, const char* A, int64_t am,
                                                        const char* B, int32_t* C) {
  TileConfig config;
  for (int64_t m = 0; m < rows; m += 32) {
    const bool two = rows - m > 16;
    int32_t* c = C + m * kInt8Columns;
    if (two && blocks == 2)
      int8_tile_piece<true, true>(Kp, A + m * am, am, B, c);
    else if (two)
      int8_tile_piece<true, false>(Kp, A + m * am, am, B, c);
    else if (blocks == 2)
      int8_tile_piece<false, true>(Kp, A + m * am, am, B, c);
    else
      int8_tile_piece<false, false>(Kp, A + m * am, am, B, c);
  }
}
#endif

}  // namespace HFK_NAMESPACE
}  // namespace hfk
