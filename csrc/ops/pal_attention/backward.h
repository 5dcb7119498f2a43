// pal_attention backward: the sweeps of the forward in reverse, with gradients of the rank rows in the tensors' type, then
// the weights (weights.h).
#pragma once
#include "../prefix_attention/backward.h"
#include "forward.h"
#include "weights.h"

namespace hfk {
namespace HFK_NAMESPACE {

// grad times the derivative of the activation, for the rows of a tile; returns them as rows of the product.
template <class T, class E>
static const E* pal_decoded_rows(const PalArgs& a, const PalTile& t, T* decoded, int64_t* stride) {
  const T* grad = static_cast<const T*>(a.grad) + t.row * a.grad_stride;
  E* buffer = scratch<E>(0, kPalTileRows * padded_k<E>(a.D));
  if (a.slope == nullptr) return rows_for_product<E>(t.rows, a.D, grad, a.grad_stride, nullptr, buffer, stride);
  const T* slope = static_cast<const T*>(a.slope) + t.row * a.D;
  T* d = decoded + t.row * a.D;
  for (int64_t m = 0; m < t.rows; m++)
    for (int64_t n = 0; n < a.D; n += VL)
      store_first(d + m * a.D + n,
                  load_first(grad + m * a.grad_stride + n, a.D - n) * load_first(slope + m * a.D + n, a.D - n), a.D - n);
  return rows_for_product<E>(t.rows, a.D, static_cast<const T*>(d), a.D, nullptr, buffer, stride);
}

// G = A W (gradient through one square weight), all columns of a tile; G rows are Sp apart, zero beyond S.
template <class T, class E>
static void pal_through(const PalArgs& a, const PalTile& t, int64_t K, const E* A, int64_t am, const E* W, T* G) {
  const int64_t ldc = round_up(a.Sp, PW);
  float* C = scratch<float>(2, kPalTileRows * ldc);
  pal_product<E>(t.rows, a.S, K, A, am, W, C, ldc);
  pal_keep<T>(t.rows, a.S, a.Sp, C, ldc, nullptr, G, a.Sp);
}

// Gradients of query, key and value, of all sequences that have a task.
template <class T>
static void pal_attend_backward(const PalArgs& a, const PalGrads<T>& g) {
  // One work item is a head of a unit, here of one sequence.
  Shared<int64_t> order(a.B), start(a.B + 1), no_prefix(a.B);
  PrefixAttentionBackwardArgs p = {pal_heads_args<T>(a)};
  for (int64_t b = 0; b < a.B; b++) {
    start[b] = b, no_prefix[b] = -1;
    if (a.sequence_task[b] >= 0) order[p.units++] = b;
  }
  start[p.units] = p.units;
  p.unit_task = no_prefix, p.unit_start = start, p.order = order;
  p.grad_out = pal_heads(a, g.mixed.data, a.Sp);
  p.grad_query = pal_heads(a, g.query.data, a.Sp);
  p.grad_key = pal_heads(a, g.key.data, a.Sp);
  p.grad_value = pal_heads(a, g.value.data, a.Sp);
  prefix_attention_backward(p);
}

// du = dq Wq + dk Wk + dv Wv and dx = du V_E for a tile.
template <class T, class E>
static void pal_encoder_rows(const PalArgs& a, const PalWeight<E>* squares, const PalWeight<E>& encoder, PalGrads<T>& g,
                             const PalTile& t) {
  const T* parts[3] = {g.query.data, g.key.data, g.value.data};
  T* du = g.encoded.data + t.row * a.Sp;
  const int64_t ldu = round_up(a.Sp, PW), ldx = round_up(a.D, PW);
  float *sum = scratch<float>(2, 2 * kPalTileRows * ldu), *one = sum + kPalTileRows * ldu;
  int64_t am;
  for (int part = 0; part < 3; part++) {
    const E* A = pal_rank_rows<E>(a, t.rows, parts[part] + t.row * a.Sp, &am);
    pal_product<E>(t.rows, a.S, a.S, A, am, squares[part].panels, part == 0 ? sum : one, ldu);
    for (int64_t n = 0; part > 0 && n < t.rows * ldu; n += VL) store(sum + n, load(sum + n) + load(one + n));
  }
  pal_keep<T>(t.rows, a.S, a.Sp, sum, ldu, nullptr, du, a.Sp);
  if (a.dx == nullptr) return;
  const E* A = pal_rank_rows<E>(a, t.rows, static_cast<const T*>(du), &am);
  float* C = scratch<float>(3, kPalWideRows<E> * ldx);
  for (int64_t m0 = 0; m0 < t.rows; m0 += kPalWideRows<E>) {
    const int64_t rows = imin(kPalWideRows<E>, t.rows - m0);
    pal_product<E>(rows, a.D, a.S, A + m0 * am, am, encoder.panels, C, ldx);
    pal_keep<T>(rows, a.D, a.D, C, ldx, nullptr, static_cast<T*>(a.dx) + (t.row + m0) * a.D, a.D);
  }
}

template <class T>
static void pal_attention_backward_t(const PalArgs& a) {
  typedef Elem<T> E;
  PalGrads<T> g(a);
  T* const own[3] = {g.query, g.key, g.value};
  const int64_t square = pal_packed_size<E>(a, kPalQuery, true);
  parallel(a.chunks, [&](int64_t i0, int64_t i1) {
    E* panels = scratch<E>(6, pal_packed_size<E>(a, kPalDecoder, true) + square);
    for (int64_t i = i0; i < i1; i++) {
      const PalChunk& c = a.chunk[i];
      const bool output = a.task[c.task].weight[kPalOutput] != nullptr;
      PalWeight<E> through = {};
      if (output) through = pal_pack<T>(a, c.task, kPalOutput, true, panels, nullptr);
      const PalWeight<E> decoder = pal_pack<T>(a, c.task, kPalDecoder, true, panels + square, nullptr);
      for (const PalTile* t = a.tile + c.first; t < a.tile + c.last; t++) {
        T *mixed = g.mixed.data + t->row * a.Sp, *projected = g.projected.data + (output ? t->row * a.Sp : 0);
        int64_t am;
        const E* A = pal_decoded_rows<T, E>(a, *t, g.decoded, &am);
        pal_through<T>(a, *t, a.D, A, am, decoder.panels, output ? projected : mixed);
        if (output) {
          A = pal_rank_rows<E>(a, t->rows, static_cast<const T*>(projected), &am);
          pal_through<T>(a, *t, a.S, A, am, through.panels, mixed);
        }
        // The heads below write only their own columns.
        for (T* rows : own)
          for (int64_t m = t->row; m < t->row + t->rows; m++)
            memset(static_cast<void*>(rows + m * a.Sp + a.S), 0, size_t(a.Sp - a.S) * sizeof(T));
      }
    }
  });
  pal_attend_backward<T>(a, g);
  parallel(a.chunks, [&](int64_t i0, int64_t i1) {
    E* panels = scratch<E>(6, pal_packed_size<E>(a, kPalEncoder, true) + 3 * square);
    for (int64_t i = i0; i < i1; i++) {
      const PalChunk& c = a.chunk[i];
      PalWeight<E> squares[3], encoder = {};
      for (int f = 0; f < 3; f++) squares[f] = pal_pack<T>(a, c.task, kPalQuery + f, true, panels + f * square, nullptr);
      if (a.dx) encoder = pal_pack<T>(a, c.task, kPalEncoder, true, panels + 3 * square, nullptr);
      for (const PalTile* t = a.tile + c.first; t < a.tile + c.last; t++) pal_encoder_rows<T>(a, squares, encoder, g, *t);
    }
  });
  if (a.dx)
    for (int64_t b = 0; b < a.B; b++)
      if (a.sequence_task[b] < 0) memset(static_cast<T*>(a.dx) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
  pal_backward_weights<T, E>(a, g);
}

static void pal_attention_backward(const PalArgs& a) {
  a.type == DType::f32 ? pal_attention_backward_t<float>(a) : pal_attention_backward_t<bf16>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
