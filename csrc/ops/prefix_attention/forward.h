// prefix_attention forward. One work item is one key head of one batch row (or a part of its queries): its keys and
// values are packed once and serve all query heads of the group; the packed prefixes are shared by the whole call.
#pragma once
#include "operands.h"

namespace hfk {
namespace HFK_NAMESPACE {

template <class T>
static __attribute__((noinline)) void prefix_attention_few_queries(const PrefixAttentionForwardArgs& a, int64_t b,
                                                                   int64_t g0, int64_t g1, const PrefixShape& z);

// Key heads that a thread takes together when there are few queries. Where the heads of a token lie side by side, all of
// them are read before the next token: as one stream, which the processor fetches by itself. Scores stay in the cache.
static int64_t few_query_heads(const PrefixAttentionArgs& a, const PrefixShape& z) {
  if (a.key.head > a.key.token) return 1;
  const int64_t fit = imax(1, (int64_t(1) << 16) / imax(1, z.width * z.rep * a.Tq));
  return imin(fit, ceil_div(a.G, ceil_div(2 * num_threads(), imax(1, a.B))));
}

template <class T>
static HFK_INLINE void write_row(const PrefixAttentionForwardArgs& a, int64_t b, int64_t h, int64_t i, float factor,
                                 const float* row) {
  T* out = head_at<T>(a.out, b, h) + i * a.out.token;
  int64_t d = 0;
  for (; d + VL <= a.D; d += VL) store(out + d, load(row + d) * factor);
  if (d < a.D) store_first(out + d, load(row + d) * factor, a.D - d);
}

template <class T, class E>
static void prefix_attention_forward_t(const PrefixAttentionForwardArgs& a) {
  const PrefixShape z = prefix_shape<E>(a);
  constexpr bool fine = sizeof(T) == 4;
  const Dropout drop = make_dropout(a.seed, a.dropout);
  const int64_t items = a.B * a.G, D = a.D, Dp = padded_k<E>(D), Dv = round_up(D, VL);
  if (a.Tq * z.rep <= 8) {
    const int64_t heads = few_query_heads(a, z), parts = ceil_div(a.G, heads);
    parallel(a.B * parts, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; i++) {
        const int64_t g = i % parts * heads;
        prefix_attention_few_queries<T>(a, i / parts, g, imin(a.G, g + heads), z);
      }
    });
    return;
  }
  PackedPrefixes<E> prefix_keys(a.tasks, a.G, columns_size<E>(D, z.PP)), prefix_values(a.tasks, a.G, rows_size<E>(D, z.PP));
  parallel(a.tasks * a.G, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t t = i / a.G, g = i % a.G, P = a.prefix_length[t], PP = padded_prefix(P);
      pack_columns(P, D, static_cast<const T*>(a.prefix_key[t]) + g * P * D, D, prefix_keys.at(t, g));
      pack_rows(P, PP, D, static_cast<const T*>(a.prefix_value[t]) + g * P * D, D, prefix_values.at(t, g), PP * kColumns<E>);
    }
  });
  // With few items the queries are shared out as well, and keys are packed once a part.
  const int64_t blocks = ceil_div(a.Tq, z.block);
  const int64_t parts = items >= 4 * num_threads() ? 1 : imin(blocks, ceil_div(4 * num_threads(), imax(items, 1)));
  parallel(items * parts, [&](int64_t i0, int64_t i1) {
    const int64_t Tkp = padded_k<E>(a.Tk), height = z.PP + Tkp;
    E* keys = scratch<E>(0, columns_size<E>(D, a.Tk));
    E* values = scratch<E>(1, rows_size<E>(D, height));
    E* rows = scratch<E>(2, z.block * Dp);
    float* scores = scratch<float>(3, z.block * z.width);
    E* probabilities = sizeof(E) == 2 ? scratch<E>(4, z.block * z.width) : reinterpret_cast<E*>(scores);
    float* mixed = scratch<float>(5, z.block * Dv);
    RowBias bias(a, scratch<float>(6, z.TP + VL));
    float factors[64];
    FetchAhead ahead(a, a.B);
    ahead.add(a.out, true);
    for (int64_t i = i0; i < i1; i++) {
      const int64_t part = i % parts, g = i / parts % a.G, place = i / parts / a.G, b = row_at(a, place), task = a.ids[b];
      const int64_t P = task >= 0 ? a.prefix_length[task] : 0, PP = padded_prefix(P), panel = (PP + Tkp) * kColumns<E>;
      // Nothing happens to the probabilities behind their exponentials: these round them.
      const bool rounded = sizeof(E) == 2 && !a.dropout_on && (a.form == PrefixForm::softmax || P == 0);
      if (parts == 1) ahead.before(place, g, 0, a.G, i == i0);
      pack_columns(a.Tk, D, head_at<const T>(a.key, b, g), a.key.token, keys);
      if (PP) place_rows(PP, D, prefix_values.at(task, g), values, panel);
      pack_rows(a.Tk, Tkp, D, head_at<const T>(a.value, b, g), a.value.token, values + PP * kColumns<E>, panel);
      for (int64_t h = g * z.rep; h < (g + 1) * z.rep; h++)
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
          const int64_t m0 = block * z.block, mb = imin(z.block, a.Tq - m0);
          const int64_t seen = visible_keys(a, m0 + mb - 1), end = round_up(seen, 32);
          int64_t am;
          const E* q = rows_for_product<E>(mb, D, head_at<const T>(a.query, b, h) + m0 * a.query.token, a.query.token,
                                           nullptr, rows, &am);
          if (PP) panels_product(mb, P, D, q, am, prefix_keys.at(task, g), columns_panel<E>(D), scores, z.width, ahead);
          if (seen) panels_product(mb, seen, D, q, am, keys, columns_panel<E>(D), scores + PP, z.width, ahead);
          for (int64_t m = 0; m < mb; m += VL) {
            const int64_t count = imin(VL, mb - m);
            int64_t visible[VL];
            for (int64_t r = 0; r < count; r++) visible[r] = visible_keys(a, m0 + m + r);
            RowResults results;
            bf16* low = rounded ? reinterpret_cast<bf16*>(probabilities) + m * z.width : nullptr;
            softmax_rows<fine>(a, scores + m * z.width, z.width, count, P, PP, visible, end, bias, b, h, m0 + m, low,
                               results, sizeof(E) == 2 ? &ahead : nullptr);
            for (int64_t r = 0; r < count; r++) {
              float* s = scores + (m + r) * z.width;
              const int64_t token = m0 + m + r, line = (b * a.H + h) * a.Tq + token;
              factors[m + r] = results.factor[r];
              a.gate[line] = results.gate[r];
              if (a.dropout_on) drop_both(drop, dropout_row(drop, uint32_t(line)), s, PP, end);
              if constexpr (sizeof(E) == 2)
                for (int64_t n = 0; n < PP + end && !rounded; n += VL)
                  store(probabilities + (m + r) * z.width + n, load(s + n));
            }
          }
          panels_product(mb, D, PP + seen, probabilities, z.width, values, panel, mixed, Dv, ahead);
          for (int64_t m = 0; m < mb; m++) write_row<T>(a, b, h, m0 + m, factors[m], mixed + m * Dv);
        }
    }
  });
}

// Few query rows, as in decoding with a cache: every key and value is read once, in place, kFetchRows at a time while the
// next ones are fetched: rows may lie a whole token apart, further than the processor looks ahead by itself.
constexpr int64_t kFetchRows = 16;
template <class T>
static HFK_INLINE void fetch_rows(int64_t begin, int64_t end, const T* rows, int64_t stride, int64_t D) {
  for (int64_t i = begin; i < end; i++) {
    const char* p = reinterpret_cast<const char*>(rows + i * stride);
    for (int64_t byte = 0; byte < D * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(p + byte);
  }
}

template <int R, class T>
static HFK_INLINE void add_weighted_rows(int64_t n, const float* p, int64_t ps, const T* v, int64_t stride, int64_t columns,
                                         float* out, int64_t os) {
  constexpr int NV = 4;
  for (int64_t d = 0; d < columns; d += NV * VL) {
    const int64_t left = imin(NV * VL, columns - d);
    V acc[R][NV];
    for (int r = 0; r < R; r++)
      for (int j = 0; j < NV; j++) acc[r][j] = j * VL < left ? load(out + r * os + d + j * VL) : zero();
    if (left == NV * VL) {
      for (int64_t k = 0; k < n; k++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
          V x = load(v + k * stride + d + j * VL);
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) acc[r][j] = fma(broadcast(p[r * ps + k]), x, acc[r][j]);
        }
    } else {
      for (int64_t k = 0; k < n; k++)
        for (int j = 0; j < NV; j++) {
          if (j * VL >= left) continue;
          V x = load_first(v + k * stride + d + j * VL, left - j * VL);
          for (int r = 0; r < R; r++) acc[r][j] = fma(broadcast(p[r * ps + k]), x, acc[r][j]);
        }
    }
    for (int r = 0; r < R; r++)
      for (int j = 0; j < NV; j++)
        if (j * VL < left) store(out + r * os + d + j * VL, acc[r][j]);
  }
}

// s[r][j] = q_r . k_j; whole vectors are written. VL keys at a time, whose sums over lanes are taken together.
template <class T>
static void score_rows(int64_t R, int64_t n, int64_t D, const float* q, int64_t qs, const T* k, int64_t stride, float* s,
                       int64_t width) {
  alignas(64) float products[VL * VL];
  for (int64_t j = 0; j < n; j += VL) {
    const T* key[VL];
    for (int i = 0; i < VL; i++) key[i] = k + imin(j + i, n - 1) * stride;
    for (int64_t r = 0; r < R; r++) {
      V acc[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; i++) acc[i] = zero();
      int64_t d = 0;
      for (; d + VL <= D; d += VL) {
        const V x = load(q + r * qs + d);
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) acc[i] = fma(x, load(key[i] + d), acc[i]);
      }
      if (d < D)
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) acc[i] = fma(load_first(q + r * qs + d, D - d), load_first(key[i] + d, D - d), acc[i]);
#pragma GCC unroll 16
      for (int i = 0; i < VL; i++) store(products + i * VL, acc[i]);
      store(s + r * width + j, sum_of_each(products));
    }
  }
}

template <class T>
static void weigh_rows(int64_t R, int64_t n, const float* p, int64_t ps, const T* v, int64_t stride, int64_t D, float* out,
                       int64_t os) {
  int64_t r = 0;
  for (; r + 4 <= R; r += 4) add_weighted_rows<4>(n, p + r * ps, ps, v, stride, D, out + r * os, os);
  for (; r < R; r++) add_weighted_rows<1>(n, p + r * ps, ps, v, stride, D, out + r * os, os);
}

template <class T>
static __attribute__((noinline)) void prefix_attention_few_queries(const PrefixAttentionForwardArgs& a, int64_t b,
                                                                   int64_t g0, int64_t g1, const PrefixShape& z) {
  const Dropout drop = make_dropout(a.seed, a.dropout);
  const int64_t D = a.D, Dv = round_up(D, VL), R = z.rep * a.Tq, rows = (g1 - g0) * R, task = a.ids[b];
  const int64_t P = task >= 0 ? a.prefix_length[task] : 0, PP = padded_prefix(P), w = z.width;
  float* q = scratch<float>(2, rows * Dv);
  float* scores = scratch<float>(3, rows * w);
  float* factors = scratch<float>(4, rows);
  float* mixed = scratch<float>(5, rows * Dv);
  RowBias bias(a, scratch<float>(6, z.TP + VL));
  // Row r belongs to query head g0 rep + r / Tq.
  for (int64_t r = 0; r < rows; r++) {
    const T* s = head_at<const T>(a.query, b, g0 * z.rep + r / a.Tq) + r % a.Tq * a.query.token;
    for (int64_t d = 0; d < Dv; d++) q[r * Dv + d] = d < D ? to_float(s[d]) : 0.f;
    for (int64_t d = 0; d < Dv; d++) mixed[r * Dv + d] = 0.f;
  }
  const T *prefix_key = P ? static_cast<const T*>(a.prefix_key[task]) : nullptr,
          *prefix_value = P ? static_cast<const T*>(a.prefix_value[task]) : nullptr;
  for (int64_t g = g0; g < g1 && P; g++)
    score_rows(R, P, D, q + (g - g0) * R * Dv, Dv, prefix_key + g * P * D, D, scores + (g - g0) * R * w, w);
  for (int64_t j = 0; j < a.Tk; j += kFetchRows)
    for (int64_t g = g0; g < g1; g++) {
      const T *k = head_at<const T>(a.key, b, g), *v = head_at<const T>(a.value, b, g);
      const int64_t next = j + kFetchRows;
      if (next < a.Tk)
        fetch_rows(next, imin(next + kFetchRows, a.Tk), k, a.key.token, D);
      else
        fetch_rows(0, imin(kFetchRows, a.Tk), v, a.value.token, D);
      score_rows(R, imin(kFetchRows, a.Tk - j), D, q + (g - g0) * R * Dv, Dv, k + j * a.key.token, a.key.token,
                 scores + (g - g0) * R * w + PP + j, w);
    }
  for (int64_t r = 0; r < rows; r++) {
    const int64_t h = g0 * z.rep + r / a.Tq, i = r % a.Tq, line = (b * a.H + h) * a.Tq + i, visible = visible_keys(a, i);
    float* s = scores + r * w;
    RowResults results;
    softmax_rows<sizeof(T) == 4>(a, s, w, 1, P, PP, &visible, z.TP, bias, b, h, i, nullptr, results);
    factors[r] = results.factor[0];
    a.gate[line] = results.gate[0];
    if (a.dropout_on) drop_both(drop, dropout_row(drop, uint32_t(line)), s, PP, z.TP);
  }
  for (int64_t g = g0; g < g1 && P; g++)
    weigh_rows(R, P, scores + (g - g0) * R * w, w, prefix_value + g * P * D, D, D, mixed + (g - g0) * R * Dv, Dv);
  for (int64_t j = 0; j < a.Tk; j += kFetchRows)
    for (int64_t g = g0; g < g1; g++) {
      const T* v = head_at<const T>(a.value, b, g);
      fetch_rows(j + kFetchRows, imin(j + 2 * kFetchRows, a.Tk), v, a.value.token, D);
      weigh_rows(R, imin(kFetchRows, a.Tk - j), scores + (g - g0) * R * w + PP + j, w, v + j * a.value.token, a.value.token,
                 D, mixed + (g - g0) * R * Dv, Dv);
    }
  for (int64_t r = 0; r < rows; r++) write_row<T>(a, b, g0 * z.rep + r / a.Tq, r % a.Tq, factors[r], mixed + r * Dv);
}

static void prefix_attention_forward(const PrefixAttentionForwardArgs& a) {
  a.type == DType::f32 ? prefix_attention_forward_t<float, float>(a) : prefix_attention_forward_t<bf16, Elem<bf16>>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
