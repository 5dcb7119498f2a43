// parallel_adapter_norm, backward: the tape of bottleneck rows that the blocks leave, and the products of the weight
// gradients with it.
#pragma once
#include "../../gemm/gemm.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rows of a tape that the weight products read for a rank. Floats stand in groups of rows, side by side (gemm_add_grouped);
// bfloat16 along the rows of the task, 16 at a time.
template <class E>
static HFK_INLINE int64_t tape_rows(int64_t rank) {
  return round_up(rank, sizeof(E) == 4 ? kGroup : 16);
}

// A block's rows s[m][j] become columns k0 + m of the tape.
static void tape_groups(int64_t rows, int64_t rank, const float* s, int64_t ld, float* d, int64_t stride, int64_t k0) {
  for (int64_t j = 0; j < rank; j += kGroup) {
    float* to = d + (j * stride) + k0 * kGroup;
    const float* from = s + j;
    int64_t m = 0;
    // What a vector writes too much is overwritten by the rows that follow; the last ones are written exactly.
    constexpr int64_t over = (VL + kGroup - 1) / kGroup;
    if (VL >= kGroup)
      for (; m + over < rows; m++) store(to + m * kGroup, load(from + m * ld));
    for (; m < rows; m++)
      for (int64_t i = 0; i < kGroup; i++) to[m * kGroup + i] = j + i < rank ? from[m * ld + i] : 0.f;
  }
}
template <class E>
static void tape_block(int64_t rows, int64_t rank, const float* s, int64_t ld, E* d, int64_t stride, int64_t k0) {
  if constexpr (sizeof(E) == 4) return tape_groups(rows, rank, s, ld, d, stride, k0);
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 2) {
    alignas(64) float square[256];
    for (int64_t m = 0; m < rows; m += 16)
      for (int64_t j = 0; j < rank; j += 16) {
        transpose16(s + m * ld + j, ld * 4, square, 64, int(imin(16, rows - m)));
        for (int64_t q = 0; q < imin(16, rank - j); q++)
          store_first(d + (j + q) * stride + k0 + m, load(square + 16 * q), imin(16, rows - m));
      }
  }
#endif
}

// Panels of a weight gradient that one work item sums, and rows that are summed at a time: what they hold of the gradient,
// of the tape and of the packed rows stays in the second-level cache.
constexpr int64_t kWeightPanels = 6;
template <class E>
constexpr int64_t kWeightRows = sizeof(E) == 4 ? 256 : 512;
// bfloat16: ranks whose tape stays there while those panels pass by.
constexpr int64_t kWeightRanks = 64;
// Up to this rank rows are read where they are, a few at a time: packing them would cost as much as the product.
constexpr int64_t kDirectRank = 24, kDirectRows = 48;

// Rows [k0, k0 + K) of a task, `width` columns from n0 on, as panels. Row after row, so that what is read is contiguous.
template <class T, class E>
static void pack_task_rows(const TaskRows& rows, int64_t k0, int64_t K, const T* B, int64_t D, int64_t n0, int64_t width,
                           E* packed) {
  auto row = [&](int64_t k) { return B + (rows.index ? int64_t(rows.index[k0 + k]) : rows.start + k0 + k) * D + n0; };
  const int64_t size = panel_size<E>(K);
  if constexpr (sizeof(E) == 4) {
    for (int64_t k = 0; k < K; k++) {
      const T* s = row(k);
      for (int64_t n = 0; n < round_up(width, PW); n += VL)
        store(packed + n / PW * size + k * PW + n % PW, n < width ? load_first(s + n, width - n) : zero());
    }
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 2) {
    const int64_t Kp = padded_k<E>(K);
    for (int64_t k = 0; k < Kp; k += 2) {
      const T *s = row(imin(k, K - 1)), *next = row(imin(k + 1, K - 1));
      for (int64_t n = 0; n < width; n += PW)
        pack_pair(Kp, k < K ? width - n : 0, k + 1 < K, s + n, next + n, packed + n / PW * size + k * 32);
    }
  }
#endif
}

// `panels` panels of columns from n0 of a weight gradient: C[panel][rank][PW] = sum over the task's rows of
// A[.][row] * B[row][.].
template <class T, class E>
static void adapter_weight_panels(const TaskRows& rows, int64_t rank, const E* A, int64_t stride, const T* B, int64_t D,
                                  int64_t n0, int64_t panels, float* C) {
  const int64_t ranks = round_up(rank, 16), width = imin(panels * PW, D - n0);
  E* packed = scratch<E>(5, panels * panel_size<E>(kWeightRows<E>));
  float* part = scratch<float>(6, kWeightRanks * PW);
  memset(C, 0, size_t(panels * ranks * PW) * 4);
  if constexpr (sizeof(E) == 4 && sizeof(T) == 4)
    if (rank <= kDirectRank && rows.index == nullptr && D % VL == 0) {
      for (int64_t k = 0; k < rows.count; k += kDirectRows)
        for (int64_t p = 0; p < panels; p++)
          gemm_add_grouped(rank, imin(PW, width - p * PW), imin(kDirectRows, rows.count - k), A + k * kGroup, stride,
                           B + (rows.start + k) * D + n0 + p * PW, D, C + p * ranks * PW, PW);
      return;
    }
  for (int64_t k = 0; k < rows.count; k += kWeightRows<E>) {
    const int64_t kc = imin(kWeightRows<E>, rows.count - k);
    pack_task_rows(rows, k, kc, B, D, n0, width, packed);
    if constexpr (sizeof(E) == 4) {
      for (int64_t p = 0; p < panels; p++)
        gemm_add_grouped(rank, imin(PW, width - p * PW), kc, A + k * kGroup, stride, packed + p * panel_size<E>(kc), PW,
                         C + p * ranks * PW, PW);
      continue;
    }
    for (int64_t r = 0; r < rank; r += kWeightRanks) {
      const int64_t some = imin(kWeightRanks, rank - r);
      const E* tape = A + r * stride + k;
      for (int64_t p = 0; p < panels; p++) {
        float* c = C + (p * ranks + r) * PW;
        gemm_store(some, imin(PW, width - p * PW), kc, tape, stride, packed + p * panel_size<E>(kc), part, PW);
        for (int64_t i = 0; i < some * PW; i += VL) store(c + i, load(c + i) + load(part + i));
      }
    }
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
