// The product of int8 rows with int8 panels, summed exactly in int32.
//
// W (outputs n, inputs k) is laid out once for every instruction set: blocks of 16 outputs, groups of 4 inputs,
// [ceil(N / 16)][Kp / 4][16][4] with Kp = K rounded up to 64, zero where there is nothing. A step is a dword of a row of x
// and 16 dwords of a block. Three ways read it:
//   pairs: two int16 a dword (vpmaddwd, AVX2 and AVX-512). The block is widened once for many rows; 2 steps a group.
//   bytes: four bytes a dword (vpdpbusd, AVX-VNNI and AVX-512 VNNI), 1 step a group. The instruction wants its first operand
//     unsigned: rows hold q + 128, and sums start at -128 times the sum of the output's weights.
//   tiles: AMX (int8_tiles.h).
// int32 holds every sum: |q| <= 127, so up to kInt8MaxK inputs. What goes beyond on the way (q + 128) wraps and comes back,
// for none of these instructions saturates.
#pragma once
#include "../base/vec.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Outputs of a block, vectors that they take, and blocks that are multiplied together.
constexpr int kBlockN = 16;
constexpr int kBlockVectors = kBlockN / VL;
constexpr int kBlocks = VL == 16 ? 2 : 1;
// Outputs whose sums are kept side by side, [rows][kInt8Columns], before they are stored: whole lines of a row.
constexpr int64_t kInt8Columns = 64;
// Rows of a tile: the sums and what they are made of fit into the registers.
constexpr int kInt8TileRows = VL == 16 ? 8 : VL == 8 ? 4 : 2;
// Steps that are done with all rows before the next: their part of the panel stays in the first-level cache.
constexpr int64_t kInt8Steps = 24576 / (kBlockN * 4 * kBlocks);

static HFK_INLINE VI load_int(const void* p) { return *static_cast<const VI*>(p); }
static HFK_INLINE void store_int(void* p, VI v) { *static_cast<VI*>(p) = v; }

// c + the products of the two int16 of each dword.
struct DotPairs {
  static constexpr int64_t steps_a_group = 2;
  static HFK_INLINE VI run(VI c, VI a, VI b) {
#if defined(__AVX512BW__)
    return c + (VI)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return c + (VI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return c + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

// c + the products of the four bytes of each dword, unsigned in a and signed in b. Written as the instruction itself, so
// that the rest of the file is compiled for processors without it. The plain form is for tests: whoever has no such
// instruction multiplies pairs.
struct DotBytes {
  static constexpr int64_t steps_a_group = 1;
  static HFK_INLINE VI run(VI c, VI a, VI b) {
#if defined(__AVX512F__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
#elif defined(__AVX2__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
#else
    for (int i = 0; i < 4; i++) c += (VI)((VU)(a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24);
    return c;
#endif
  }
};

// Sums of MR rows and NB blocks: C[i][n] = from[i][n] + products. Rows of A are am bytes apart, those of `from`
// from_stride elements (0: all rows start alike), blocks of B block_bytes.
template <class Dot, int MR, int NB>
static HFK_INLINE void int8_tile(int64_t steps, const char* A, int64_t am, const char* B, int64_t block_bytes,
                                 const int32_t* from, int64_t from_stride, int32_t* C) {
  constexpr int NV = NB * kBlockVectors;
  VI c[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) c[i][j] = load_int(from + i * from_stride + j * VL);
  for (int64_t s = 0; s < steps; s++, B += kBlockN * 4) {
    VI b[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) b[j] = load_int(B + j / kBlockVectors * block_bytes + j % kBlockVectors * VL * 4);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      int32_t dword;
      memcpy(&dword, A + i * am + 4 * s, 4);
      const VI a = dword - VI{};
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++) c[i][j] = Dot::run(c[i][j], a, b[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) store_int(C + i * kInt8Columns + j * VL, c[i][j]);
}

template <class Dot, int NB>
static __attribute__((noinline)) void int8_rows(int64_t rows, int64_t steps, const char* A, int64_t am, const char* B,
                                                int64_t block_bytes, const int32_t* start, bool first, int32_t* C) {
  constexpr int64_t ldc = kInt8Columns;
  const int64_t fs = first ? 0 : ldc;
  auto from = [&](int64_t m) { return first ? start : C + m * ldc; };
  int64_t m = 0;
  for (; m + kInt8TileRows <= rows; m += kInt8TileRows)
    int8_tile<Dot, kInt8TileRows, NB>(steps, A + m * am, am, B, block_bytes, from(m), fs, C + m * ldc);
  for (; m + 2 <= rows; m += 2) int8_tile<Dot, 2, NB>(steps, A + m * am, am, B, block_bytes, from(m), fs, C + m * ldc);
  for (; m < rows; m++) int8_tile<Dot, 1, NB>(steps, A + m * am, am, B, block_bytes, from(m), fs, C + m * ldc);
}

// Groups of 4 bytes as two dwords of int16 pairs: [groups][16][4] to [groups][2][16][2].
static void widen_pairs(int64_t groups, const char* s, char* d) {
  typedef int16_t VS __attribute__((vector_size(VL * 4), aligned(4), may_alias));
  for (int64_t i = 0; i < groups; i++)
    for (int j = 0; j < kBlockVectors; j++) {
      // The two bytes in the middle of a dword change places: then its even bytes are the first pair, its odd the second.
      const VU v = (VU)load_int(s + i * 64 + j * VL * 4);
      const VS swapped = (VS)((v & 0xff0000ffu) | (v << 8 & 0x00ff0000u) | (v >> 8 & 0x0000ff00u));
      store_int(d + i * 128 + j * VL * 4, (VI)((VS)(swapped << 8) >> 8));
      store_int(d + i * 128 + 64 + j * VL * 4, (VI)(VS)(swapped >> 8));
    }
}

// C[rows][kInt8Columns] = start + A B for `blocks` blocks (at most kBlocks) of `groups` groups. wide: room for the piece of
// widened pairs (kInt8Steps * kBlockN * 4 * kBlocks bytes).
template <class Dot>
static void int8_product(int64_t rows, int64_t groups, int64_t blocks, const char* A, int64_t am, const char* B,
                         const int32_t* start, char* wide, int32_t* C) {
  constexpr int64_t piece = kInt8Steps / Dot::steps_a_group;
  for (int64_t g = 0; g < groups; g += piece) {
    const int64_t some = imin(piece, groups - g), steps = some * Dot::steps_a_group;
    const char* b = B + g * 64;
    int64_t stride = groups * 64;
    if (Dot::steps_a_group == 2) {
      for (int64_t j = 0; j < blocks; j++) widen_pairs(some, b + j * stride, wide + j * some * 128);
      b = wide, stride = some * 128;
    }
    const char* a = A + g * Dot::steps_a_group * 4;
    if (blocks == kBlocks)
      int8_rows<Dot, kBlocks>(rows, steps, a, am, b, stride, start, g == 0, C);
    else
      int8_rows<Dot, 1>(rows, steps, a, am, b, stride, start, g == 0, C);
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
