// pal_attention forward, in three sweeps that each keep their rows in cache: tiles of tokens through encoder, query, key
// and value; heads of sequences through attention; tiles through output projection, decoder and activation.
#pragma once
#include "../../base/activate_both.h"
#include "../prefix_attention/forward.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rows of width D that are computed at a time. With fewer, weights pass through the first-level cache more often.
template <class E>
constexpr int64_t kPalWideRows = sizeof(E) == 4 ? 24 : 64;

template <class T>
static HFK_INLINE T* pal_hidden(const PalArgs& a, int piece, int64_t row) {
  return static_cast<T*>(a.hidden) + (piece * a.B * a.T + row) * a.Sp;
}
static HFK_INLINE bool pal_square(int family) { return family != kPalEncoder && family != kPalDecoder; }
static HFK_INLINE int64_t pal_outputs(const PalArgs& a, int family) { return family == kPalDecoder ? a.D : a.S; }
static HFK_INLINE int64_t pal_inputs(const PalArgs& a, int family) { return family == kPalEncoder ? a.D : a.S; }

// One weight of a chunk's task, packed into `panels`; and its bias as floats, zero padded. transposed: for gradients, rows
// times W instead of W^T, without a bias.
template <class E>
struct PalWeight {
  const E* panels;
  const float* bias;
};
static HFK_INLINE int64_t pal_panels(const PalArgs& a, int family, bool transposed) {
  return transposed ? pal_inputs(a, family) : pal_outputs(a, family);
}
template <class E>
static HFK_INLINE int64_t pal_packed_size(const PalArgs& a, int family, bool transposed) {
  const int64_t K = transposed ? pal_outputs(a, family) : pal_inputs(a, family);
  return round_up(packed_size<E>(K, pal_panels(a, family, transposed)), 32);
}
#if defined(__AVX512BF16__)
// Columns [0, columns) of rows 0, 1, 2, ..., or those that index names, as the right-hand operand of a product that sums
// over the rows (pack.h). All panels together: the rows are then read as one stream.
static void pal_pair_rows(int64_t rows, int64_t columns, const bf16* s, int64_t stride, const int32_t* index, bf16* B) {
  constexpr int64_t ahead = 16;  // rows of other sequences do not follow one another, so they are fetched
  const int64_t Kp = padded_k<bf16>(rows);
  auto row = [&](int64_t k) { return s + (index ? index[k] : k) * stride; };
  for (int64_t k = 0; k < Kp; k += 2) {
    const bool first = k < rows, second = k + 1 < rows;
    const bf16 *a = first ? row(k) : s, *b = second ? row(k + 1) : a;
    for (int64_t i = k + ahead; index && i < imin(k + ahead + 2, rows); i++)
      for (int64_t n = 0; n < columns; n += 32) prefetch_l2(row(i) + n);
    for (int64_t n = 0; n < columns; n += PW)
      pack_pair(Kp, first ? columns - n : 0, second, a + n, b + n, B + n * Kp + pair_index(Kp, k, 0));
  }
}
#endif

template <class T, class E>
static PalWeight<E> pal_pack(const PalArgs& a, int64_t task, int family, bool transposed, E* panels, float* bias) {
  const PalTask& w = a.task[task];
  const T* s = static_cast<const T*>(w.weight[family]);
  const int64_t out = pal_outputs(a, family), in = pal_inputs(a, family);
  const int64_t K = transposed ? out : in, N = transposed ? in : out;
  const int64_t sk = transposed ? w.row_stride[family] : w.column_stride[family];
  const int64_t sn = transposed ? w.column_stride[family] : w.row_stride[family];
#if defined(__AVX512BF16__)
  const bool rows = sizeof(E) == 2 && sn == 1;
  if constexpr (sizeof(E) == 2)
    if (rows) pal_pair_rows(K, N, s, sk, nullptr, panels);
#else
  const bool rows = false;
#endif
  if (!rows) pack<E>(K, N, s, sk, sn, panels, 0, ceil_div(N, PW));
  const T* v = static_cast<const T*>(w.weight[family + kPalMatrices]);
  if (transposed || v == nullptr) return {panels, nullptr};
  for (int64_t n = 0; n < round_up(out, PW); n++)
    bias[n] = n < out ? to_float(v[n * w.row_stride[family + kPalMatrices]]) : 0.f;
  return {panels, bias};
}

// C plus bias, as T; columns up to `padded` (a multiple of VL, or `columns`) are written, 0 beyond columns.
template <class T>
static __attribute__((noinline)) void pal_keep(int64_t rows, int64_t columns, int64_t padded, const float* C, int64_t ldc,
                                               const float* bias, T* out, int64_t stride) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < padded; n += VL) {
      V v = n < columns ? load_first(C + m * ldc + n, columns - n) : zero();
      if (bias && n < columns) v += load_first(bias + n, columns - n);
      store_first(out + m * stride + n, v, padded - n);
    }
}

// C [rows][ldc] = A W over all panels of W. next: rows of A that come after these, or null.
template <class E>
static HFK_INLINE void pal_product(int64_t rows, int64_t N, int64_t K, const E* A, int64_t am, const E* W, float* C,
                                   int64_t ldc, const E* next = nullptr) {
#if defined(__AMX_TILE__)
  if constexpr (sizeof(E) == 2) return gemm_store(rows, N, K, A, am, W, C, ldc, next);
#endif
  gemm_store(rows, N, K, A, am, W, C, ldc);
}

// Rank rows [rows][S], a.Sp apart, as a product with E wants them: those of bfloat16 with the zeros behind them.
template <class E, class T>
static HFK_INLINE const E* pal_rank_rows(const PalArgs& a, int64_t rows, const T* source, int64_t* am) {
  return rows_for_product<E>(rows, sizeof(E) == 2 ? a.Sp : a.S, source, a.Sp, nullptr,
                             scratch<E>(1, kPalTileRows * padded_k<E>(a.S)), am);
}

// hidden piece = source W^T + bias for the rows of a tile. Whole rows are stored one after the other, so that they stream.
template <class T, class E>
static void pal_project(const PalArgs& a, const PalWeight<E>& w, const PalTile& t, int family, int piece, const E* A,
                        int64_t am, float* C, const E* next = nullptr) {
  const int64_t ldc = round_up(a.Sp, PW);
  pal_product<E>(t.rows, a.S, pal_inputs(a, family), A, am, w.panels, C, ldc, next);
  pal_keep<T>(t.rows, a.S, a.Sp, C, ldc, w.bias, pal_hidden<T>(a, piece, t.row), a.Sp);
}

// The attention is that of prefix_attention, without a prefix.
template <class T>
static HeadsView pal_heads(const PalArgs& a, T* rows, int64_t stride) {
  return {rows, a.T * stride, a.S / a.heads, stride};
}
template <class T>
static PrefixAttentionArgs pal_heads_args(const PalArgs& a) {
  const int64_t K = a.S / a.heads;
  PrefixAttentionArgs p = {};
  p.type = a.type;
  p.B = a.B, p.H = p.G = a.heads, p.Tq = p.Tk = a.T, p.D = K;
  p.query = pal_heads(a, pal_hidden<T>(a, 1, 0), a.Sp);
  p.key = pal_heads(a, pal_hidden<T>(a, 2, 0), a.Sp);
  p.value = pal_heads(a, pal_hidden<T>(a, 3, 0), a.Sp);
  p.mask_float = {a.mask, a.mask_b, 0, a.mask_i, 1};
  p.causal = a.causal, p.scaling = 1.f / std::sqrt(float(K)), p.form = PrefixForm::softmax;
  p.dropout_on = a.dropout > 0, p.seed = a.seed, p.dropout = a.dropout;
  return p;
}
// query, key and value pieces of hidden to the mixed piece.
template <class T>
static void pal_attend(const PalArgs& a) {
  Shared<int64_t> no_prefix(a.B);
  for (int64_t b = 0; b < a.B; b++) no_prefix[b] = -1;
  Shared<float> gate(a.B * a.heads * a.T);
  PrefixAttentionForwardArgs p = {pal_heads_args<T>(a), pal_heads(a, pal_hidden<T>(a, 4, 0), a.Sp), gate};
  p.ids = no_prefix;
  prefix_attention_forward(p);
}

// Decoder and activation of a tile, a few rows at a time: their results stay in cache until they are stored.
template <class T, class E>
static void pal_decode(const PalArgs& a, const PalWeight<E>& w, const PalTile& t, const E* A, int64_t am) {
  const int64_t ldc = round_up(a.D, PW);
  const float* bias = w.bias;
  float* C = scratch<float>(3, kPalWideRows<E> * ldc);
  for (int64_t m0 = 0; m0 < t.rows; m0 += kPalWideRows<E>) {
    const int64_t rows = imin(kPalWideRows<E>, t.rows - m0);
    pal_product<E>(rows, a.D, a.S, A + m0 * am, am, w.panels, C, ldc);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t n = 0; n < a.D; n += VL) {
        V v = load(C + m * ldc + n);
        if (bias) v += load(bias + n);
        const Activated r = activate_both<T>(a.activation, v);
        const int64_t at = (t.row + m0 + m) * a.D + n;
        store_first(static_cast<T*>(a.out) + at, r.value, a.D - n);
        if (a.slope) store_first(static_cast<T*>(a.slope) + at, r.slope, a.D - n);
      }
  }
}

// A sequence without a task: zeros, also in what the backward is given.
template <class T>
static void pal_clear(const PalArgs& a, int64_t b) {
  memset(static_cast<T*>(a.out) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
  for (int piece = 0; piece < a.pieces; piece++) memset(pal_hidden<T>(a, piece, b * a.T), 0, a.T * a.Sp * sizeof(T));
  if (a.slope) memset(static_cast<T*>(a.slope) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
}

template <class T>
static void pal_attention_forward_t(const PalArgs& a) {
  typedef Elem<T> E;
  auto rows_of = [&](int piece, const PalTile& t, int64_t* am) {
    return pal_rank_rows<E>(a, t.rows, pal_hidden<T>(a, piece, t.row), am);
  };
  for (int64_t b = 0; b < a.B; b++)
    if (a.sequence_task[b] < 0) pal_clear<T>(a, b);
  const int64_t square = pal_packed_size<E>(a, kPalQuery, false), bias_size = round_up(imax(a.D, a.S), PW);
  parallel(a.chunks, [&](int64_t i0, int64_t i1) {
    float* C = scratch<float>(2, kPalTileRows * round_up(a.Sp, PW));
    // First the encoder, then query, key and value in its place.
    E* panels = scratch<E>(6, imax(pal_packed_size<E>(a, kPalEncoder, false), 3 * square));
    float* bias = scratch<float>(7, 3 * bias_size);
    for (int64_t i = i0; i < i1; i++) {
      const PalChunk& c = a.chunk[i];
      int64_t am;
      const PalWeight<E> encoder = pal_pack<T>(a, c.task, kPalEncoder, false, panels, bias);
      for (const PalTile* t = a.tile + c.first; t < a.tile + c.last; t++) {
        const T *x = static_cast<const T*>(a.x), *rows = x + t->row * a.x_stride;
        const E* X = rows_for_product<E>(t->rows, a.D, rows, a.x_stride, nullptr,
                                         scratch<E>(0, kPalTileRows * padded_k<E>(a.D)), &am);
        // Rows that the product takes where they are come from memory.
        const bool direct = static_cast<const void*>(X) == rows && t + 1 < a.tile + c.last;
        pal_project<T>(a, encoder, *t, kPalEncoder, 0, X, am, C, direct ? X + (t[1].row - t->row) * am : nullptr);
      }
      PalWeight<E> squares[3];
      for (int f = 0; f < 3; f++)
        squares[f] = pal_pack<T>(a, c.task, kPalQuery + f, false, panels + f * square, bias + f * bias_size);
      for (const PalTile* t = a.tile + c.first; t < a.tile + c.last; t++) {
        const E* U = rows_of(0, *t, &am);
        for (int f = 0; f < 3; f++) pal_project<T>(a, squares[f], *t, kPalQuery + f, kPalQuery + f, U, am, C);
        // The padding of the mixed rows, whose columns the heads write one by one.
        for (int64_t m = 0; m < t->rows; m++)
          memset(pal_hidden<T>(a, 4, t->row + m) + a.S, 0, size_t(a.Sp - a.S) * sizeof(T));
      }
    }
  });
  pal_attend<T>(a);
  parallel(a.chunks, [&](int64_t i0, int64_t i1) {
    float* C = scratch<float>(2, kPalTileRows * round_up(a.Sp, PW));
    E* panels = scratch<E>(6, pal_packed_size<E>(a, kPalDecoder, false) + square);
    float* bias = scratch<float>(7, 2 * bias_size);
    for (int64_t i = i0; i < i1; i++) {
      const PalChunk& c = a.chunk[i];
      const bool project = a.task[c.task].weight[kPalOutput] != nullptr;
      PalWeight<E> output = {};
      if (project) output = pal_pack<T>(a, c.task, kPalOutput, false, panels, bias);
      const PalWeight<E> decoder = pal_pack<T>(a, c.task, kPalDecoder, false, panels + square, bias + bias_size);
      for (const PalTile* t = a.tile + c.first; t < a.tile + c.last; t++) {
        int64_t am;
        const E* M = rows_of(4, *t, &am);
        if (project) {
          pal_project<T>(a, output, *t, kPalOutput, 5, M, am, C);
          M = rows_of(5, *t, &am);
        }
        pal_decode<T>(a, decoder, *t, M, am);
      }
    }
  });
}

static void pal_attention_forward(const PalArgs& a) {
  a.type == DType::f32 ? pal_attention_forward_t<float>(a) : pal_attention_forward_t<bf16>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
