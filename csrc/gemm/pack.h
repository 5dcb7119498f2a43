// Packing of the right-hand operand B (K x N, any strides) into column panels.
//
// A panel holds PW columns. E = float: [N / PW][K][PW]. E = bf16: pairs along K side by side, as vdpbf16ps and the AMX
// tile product want them, 32 columns at a time so that what a tile product reads is contiguous (a wider row spreads it
// over half of the cache's sets): [N / PW][PW / 32][Kp / 2][32][2] with Kp = K rounded up to 32. Padding is zero.
#pragma once
#include "../base/vec.h"

namespace hfk {
namespace HFK_NAMESPACE {

constexpr int NV_PANEL = VL == 16 ? 4 : 2;
constexpr int PW = VL * NV_PANEL;

#if defined(__AMX_TILE__) || defined(__AVX512BF16__)
constexpr bool kHasBf16Product = true;
#else
constexpr bool kHasBf16Product = false;
#endif
// The element type in which a product with operands of type T is computed.
template <class T>
struct ElemOf {
  typedef float type;
};
template <>
struct ElemOf<bf16> {
#if defined(__AMX_TILE__) || defined(__AVX512BF16__)
  typedef bf16 type;
#else
  typedef float type;
#endif
};
template <class T>
using Elem = typename ElemOf<T>::type;

// Rows of a K that the panels of E really hold, and elements of one panel.
template <class E>
static HFK_INLINE int64_t padded_k(int64_t K) {
  return sizeof(E) == 2 ? round_up(K, 32) : K;
}
template <class E>
static HFK_INLINE int64_t panel_size(int64_t K) {
  return padded_k<E>(K) * PW;
}
template <class E>
static HFK_INLINE int64_t packed_size(int64_t K, int64_t N) {
  return ceil_div(N, PW) * panel_size<E>(K);
}

// Where element (k, n) of a bf16 panel stands.
static HFK_INLINE int64_t pair_index(int64_t Kp, int64_t k, int64_t n) {
  return ((n / 32) * (Kp / 2) + k / 2) * 64 + (n % 32) * 2 + (k & 1);
}

// Memory that a product or a packing asks for along the way, evenly over its steps, so that it is in the second-level cache
// for what follows: the processor can only wait for some lines at a time, and while it multiplies it waits for none. Where
// nothing is named, a product asks for the panel that comes next. (A hint cannot fault, whatever lies there.)
struct Ahead {
  const char* at = nullptr;
  int64_t bytes = 0;
  HFK_INLINE Ahead part(int64_t i, int64_t count) const { return {at + bytes / count * i, bytes / count}; }
};
template <class T>
static HFK_INLINE Ahead ahead_of(const T* p, int64_t count) {
  return {reinterpret_cast<const char*>(p), p ? count * int64_t(sizeof(T)) : 0};
}

// Rows and columns of the blocks of floats that are transposed.
constexpr int64_t kBlock = VL == 16 ? 16 : 8;
// The same for the blocks that a packing transposes, one after the other.
struct AheadLines {
  const char* at;
  int64_t lines;
  HFK_INLINE AheadLines(Ahead more, int64_t blocks) : at(more.at), lines(ceil_div(more.bytes, 64 * imax(1, blocks))) {}
  HFK_INLINE void operator()() {
    for (int64_t i = 0; i < lines; i++) prefetch_l2(at + 64 * i);
    at += 64 * lines;
  }
};

// What is asked for while the two operands of a task are packed, one behind the other: what is read some steps later, of
// this task and then of the next. Not more than that, or it is gone from the cache again when its turn comes.
struct TaskAhead {
  static constexpr int64_t kSoon = 65536;  // bytes
  Ahead down, up, next_down, next_up;
  bool down_asks;  // while `down` is packed; else `up` asks for both of the next task, which are small
  // While `count` bytes from `first` on are packed.
  Ahead at(int64_t first, int64_t count) const {
    const int64_t both = down.bytes + up.bytes;
    int64_t from = first + imin(kSoon, both);
    if (!down_asks) {
      const int64_t times = ceil_div(both, imax(1, up.bytes));
      from = both + (first - down.bytes) * times, count *= times;
    }
    const Ahead order[] = {down, up, next_down, next_up};
    for (const Ahead& part : order) {
      if (from < part.bytes) return {part.at + from, imin(count, part.bytes - from)};
      from -= part.bytes;
    }
    return {};
  }
};

#if defined(__AVX512F__)
// Transposes 16 x 16 dwords; rows at or beyond `rows`, and with `part` bytes of a row at or beyond `bytes`, count as 0.
template <bool part = false>
static HFK_INLINE void transpose16(const void* source, int64_t source_bytes, void* target, int64_t target_bytes, int rows,
                                   int64_t bytes = 64) {
  const char* s = static_cast<const char*>(source);
  char* d = static_cast<char*>(target);
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    if (part)
      r[i] = i < rows ? _mm512_maskz_loadu_epi8((uint64_t(1) << bytes) - 1, s + i * source_bytes) : _mm512_setzero_si512();
    else
      r[i] = i < rows ? _mm512_loadu_si512(s + i * source_bytes) : _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(d + i * target_bytes, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(d + (i + 8) * target_bytes, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(d + (i + 4) * target_bytes, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(d + (i + 12) * target_bytes, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
// Transposes 8 x 8 floats in place.
static HFK_INLINE void transpose8(V* r) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = (V)_mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = (V)_mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
#endif

// One panel of floats. scale (or null) multiplies row k by scale[k]. Every block that is transposed asks for a share of
// `more`.
template <class T>
static void pack_panel(int64_t K, int64_t columns, const T* s, int64_t sk, int64_t sn, const float* scale, float* d,
                       Ahead more = {}) {
  AheadLines ask(more, ceil_div(K, kBlock) * (PW / kBlock));
  int64_t k = 0;
#if defined(__AVX512F__)
  if (sizeof(T) == 4 && sk == 1 && scale == nullptr) {
    for (; k + 16 <= K; k += 16)
      for (int64_t n = 0; n < PW; n += 16, ask())
        transpose16(s + n * sn + k, sn * 4, d + k * PW + n, PW * 4, int(imax(0, imin(16, columns - n))));
    if (k < K) {
      // Only the rows that are left: the memory behind them is the next panel's.
      float block[16 * 16];
      for (int64_t n = 0; n < PW; n += 16) {
        transpose16<true>(s + n * sn + k, sn * 4, block, 64, int(imax(0, imin(16, columns - n))), (K - k) * 4);
        for (int64_t j = 0; j < K - k; j++) store(d + (k + j) * PW + n, load(block + j * 16));
      }
      return;
    }
  }
#elif defined(__AVX2__)
  if (sk == 1 && scale == nullptr) {
    for (; k < K; k += VL)
      for (int64_t n = 0; n < PW; n += VL, ask()) {
        V r[VL];
        for (int64_t i = 0; i < VL; i++) r[i] = n + i < columns ? load_first(s + (n + i) * sn + k, K - k) : zero();
        transpose8(r);
        for (int64_t j = 0; j < imin(VL, K - k); j++) store(d + (k + j) * PW + n, r[j]);
      }
    return;
  }
#endif
  for (; k < K; k++) {
    float f = scale ? scale[k] : 1.f;
    int64_t n = 0;
    if (sn == 1)
      for (; n + VL <= columns; n += VL) store(d + k * PW + n, load(s + k * sk + n) * f);
    if (sn == 1 && n < columns) {
      store(d + k * PW + n, load_first(s + k * sk + n, columns - n) * f);
      n += VL;
    }
    for (; n < columns; n++) d[k * PW + n] = to_float(s[k * sk + n * sn]) * f;
    for (; n < PW; n++) d[k * PW + n] = 0.f;
  }
}

#if defined(__AVX512F__)
static HFK_INLINE void pack_pair(int64_t Kp, int64_t columns, bool second, const bf16* a, const bf16* b, bf16* d) {
  // Interleaves two rows of bf16, zero beyond `columns`.
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                         36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i last = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t n = 0; n < PW; n += 32) {
    const int64_t here = columns - n;
    const __mmask32 lanes = here >= 32 ? ~__mmask32(0) : here <= 0 ? 0 : (__mmask32(1) << here) - 1;
    const __m512i low = _mm512_maskz_loadu_epi16(lanes, a + n), high = _mm512_maskz_loadu_epi16(second ? lanes : 0, b + n);
    bf16* to = d + pair_index(Kp, 0, n);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, first, high));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(low, last, high));
  }
}
#endif

// One panel of bf16 pairs.
template <class T>
static void pack_panel(int64_t K, int64_t columns, const T* s, int64_t sk, int64_t sn, const float* scale, bf16* d,
                       Ahead more = {}) {
  const int64_t Kp = padded_k<bf16>(K);
  int64_t k = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    if (scale == nullptr && sk == 1) {
      AheadLines ask(more, ceil_div(K, 32) * (PW / 16));
      for (; k + 32 <= K; k += 32)
        for (int64_t n = 0; n < PW; n += 16, ask())
          transpose16(s + n * sn + k, sn * 2, d + pair_index(Kp, k, n), 128, int(imax(0, imin(16, columns - n))));
      if (k < K) {
        for (int64_t n = 0; n < PW; n += 16)
          transpose16<true>(s + n * sn + k, sn * 2, d + pair_index(Kp, k, n), 128, int(imax(0, imin(16, columns - n))),
                            (K - k) * 2);
        return;
      }
    }
    if (scale == nullptr && sn == 1)
      for (; k < K; k += 2) pack_pair(Kp, columns, k + 1 < K, s + k * sk, s + (k + 1) * sk, d + pair_index(Kp, k, 0));
  }
#endif
  for (k = k & ~int64_t(1); k < Kp; k++)
    for (int64_t n = 0; n < PW; n++) {
      bf16* out = d + pair_index(Kp, k, n);
      if (k < K && n < columns)
        from_float(to_float(s[k * sk + n * sn]) * (scale ? scale[k] : 1.f), *out);
      else
        out->bits = 0;
    }
}

// Panels [first, last) of a K x N operand given by its strides. `more` is asked for where blocks are transposed.
template <class E, class T>
static void pack(int64_t K, int64_t N, const T* s, int64_t sk, int64_t sn, E* d, int64_t first, int64_t last,
                 const float* scale = nullptr, Ahead more = {}) {
  for (int64_t p = first; p < last; p++) {
    const int64_t columns = imin(PW, N - p * PW);
    E* panel = d + p * panel_size<E>(K);
    pack_panel(K, columns, s + p * PW * sn, sk, sn, scale, panel, more.part(p - first, last - first));
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
