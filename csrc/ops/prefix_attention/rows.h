// prefix_attention: what forward and backward share. Layout of a score row: [prefix, padded to PP][real keys, padded].
// Padding has score -inf, hence probability 0. The largest score is subtracted before anything is converted to powers of
// 2: the exponents that count are then small, and so are their roundings.
#pragma once
#include "../../base/math.h"
#include "../../gemm/gemm.h"
#include "fetch.h"

namespace hfk {
namespace HFK_NAMESPACE {

static HFK_INLINE float minus_infinity() { return -__builtin_inff(); }

// The sizes of one call. The columns of a prefix of length P are padded to padded_prefix(P).
static HFK_INLINE int64_t padded_prefix(int64_t P) { return round_up(P, 32); }

struct PrefixShape {
  int64_t rep, PP, TP, width, block;  // query heads a key head, longest padded sizes, floats of a row, queries a block
};
template <class E>
static HFK_INLINE PrefixShape prefix_shape(const PrefixAttentionArgs& a) {
  PrefixShape s;
  s.rep = a.H / a.G;
  int64_t longest = 0;
  for (int64_t t = 0; t < a.tasks; t++) longest = imax(longest, a.prefix_length[t]);
  s.PP = padded_prefix(longest);
  s.TP = round_up(a.Tk, 32);
  s.width = s.PP + s.TP;
  // Rows a multiple of 4 KiB apart would share one set of the first-level cache.
  if (s.width % 256 == 0) s.width += 32;
  s.block = sizeof(E) == 2 || a.Tq <= 64 ? 64 : 48;
  return s;
}

// Additive bias of one query row over the real keys, from mask and position bias.
struct RowBias {
  const PrefixAttentionArgs& a;
  float* row;
  bool any, constant;  // constant: the same for all queries of a head
  int64_t b, h;        // what `row` holds when constant
  HFK_INLINE RowBias(const PrefixAttentionArgs& args, float* buffer) : a(args), row(buffer), b(-1), h(-1) {
    any = a.mask_bool.data || a.mask_float.data || a.bias.data;
    constant = a.mask_bool.query == 0 && a.mask_float.query == 0 && a.bias.query == 0;
  }
  __attribute__((noinline)) void fill(int64_t row_b, int64_t row_h, int64_t i) {
    const int64_t n = a.Tk;
    if (a.mask_bool.data) {
      const ScoreView& m = a.mask_bool;
      const uint8_t* s = static_cast<const uint8_t*>(m.data) + row_b * m.row + row_h * m.head + i * m.query;
      if (m.key == 1)
        for (int64_t j = 0; j < n; j++) row[j] = s[j] ? 0.f : minus_infinity();
      else
        for (int64_t j = 0; j < n; j++) row[j] = s[j * m.key] ? 0.f : minus_infinity();
    } else if (a.mask_float.data) {
      const ScoreView& m = a.mask_float;
      const float* s = static_cast<const float*>(m.data) + row_b * m.row + row_h * m.head + i * m.query;
      for (int64_t j = 0; j < n; j++) row[j] = s[j * m.key];
    } else {
      for (int64_t j = 0; j < n; j++) row[j] = 0.f;
    }
    if (a.bias.data) {
      const ScoreView& m = a.bias;
      const float* s = static_cast<const float*>(m.data) + row_b * m.row + row_h * m.head + i * m.query;
      for (int64_t j = 0; j < n; j++) row[j] += s[j * m.key];
    }
    for (int64_t j = n; j < round_up(n, VL); j++) row[j] = 0.f;
  }
  HFK_INLINE const float* get(int64_t row_b, int64_t row_h, int64_t i) {
    if (!any) return nullptr;
    if (!constant || row_b != b || row_h != h) fill(row_b, row_h, i);
    b = row_b, h = row_h;
    return row;
  }
};

// The first n (0 < n < VL) lanes of v, the others from `rest`.
static HFK_INLINE V keep_first(V v, int64_t n, V rest) {
  VI lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  return lane < int32_t(n) ? v : rest;
}

// Real keys that query i sees.
static HFK_INLINE int64_t visible_keys(const PrefixAttentionArgs& a, int64_t i) {
  return a.causal ? imax(0, imin(a.Tk, a.Tk - a.Tq + i + 1)) : a.Tk;
}

// Masks the padding of [valid, end) and returns the largest raw product, lane by lane.
static HFK_INLINE V largest_product(float* s, int64_t valid, int64_t end) {
  const V none = broadcast(minus_infinity());
  V top = none, other = none;
  int64_t n = 0;
  for (; n + 2 * VL <= valid; n += 2 * VL) {
    top = vmax(top, load(s + n));
    other = vmax(other, load(s + n + VL));
  }
  for (; n < valid; n += VL) {
    V x = load(s + n);
    if (n + VL > valid) store(s + n, x = keep_first(x, valid - n, none));
    top = vmax(top, x);
  }
  for (; n < end; n += VL) store(s + n, none);
  return vmax(top, other);
}

// The same where scores are more than a positive multiple of the products: they replace them.
static HFK_INLINE V finish_scores(float* s, int64_t valid, int64_t end, float factor, const float* bias) {
  const V c = broadcast(factor), none = broadcast(minus_infinity());
  V top = none;
  int64_t n = 0;
  for (; n < valid; n += VL) {
    V x = load(s + n) * c;
    if (bias) {
      // A masked key has no score, whatever it holds.
      const V add = load(bias + n);
      x = add == none ? none : fma(load(s + n), c, add);
    }
    if (n + VL > valid) x = keep_first(x, valid - n, none);
    store(s + n, x);
    top = vmax(top, x);
  }
  for (; n < end; n += VL) store(s + n, none);
  return top;
}

// p = 2^(factor (s - shift)) in place, or rounded into `low` instead; returns the sum, lane by lane. A shift of -inf
// (nothing to see) gives zeros.
template <bool fine>
static HFK_INLINE V exponentials(float* s, int64_t end, float factor, float shift, bf16* low = nullptr) {
  const V c = broadcast(factor), m = broadcast(shift == minus_infinity() ? 0.f : shift);
  V sum0 = zero(), sum1 = zero();
  int64_t n = 0;
  for (; n + 2 * VL <= end; n += 2 * VL) {
    V x = exp2_nonpositive<fine>((load(s + n) - m) * c), y = exp2_nonpositive<fine>((load(s + n + VL) - m) * c);
    low ? store(low + n, x) : store(s + n, x);
    low ? store(low + n + VL, y) : store(s + n + VL, y);
    sum0 += x;
    sum1 += y;
  }
  for (; n < end; n += VL) {
    V x = exp2_nonpositive<fine>((load(s + n) - m) * c);
    low ? store(low + n, x) : store(s + n, x);
    sum0 += x;
  }
  return sum0 + sum1;
}

static HFK_INLINE void scale_row(float* s, int64_t end, float factor) {
  for (int64_t n = 0; n < end; n += VL) store(s + n, load(s + n) * factor);
}

// Multiplies probabilities by 0 or 1 / (1 - p); the streams are those of reference.py.
static HFK_INLINE void drop_row(const Dropout& d, uint32_t hash, float* s, int64_t end, bool prefix) {
  const int64_t first = prefix ? int64_t(1) << 31 : 0;
  for (int64_t n = 0; n < end; n += VL) store(s + n, load(s + n) * dropout_factor(d, hash, first + n));
}

static HFK_INLINE void drop_both(const Dropout& d, uint32_t hash, float* s, int64_t PP, int64_t end) {
  if (PP) drop_row(d, hash, s, PP, true);
  drop_row(d, hash, s + PP, end, false);
}

// Horizontal reductions of VL vectors at once: lane r of the result belongs to vector r of `rows`.
template <class Join>
static HFK_INLINE V join_each(const float* rows, Join&& join) {
#if defined(__AVX512F__)
  // Halves of two vectors share one, four times over: 30 shuffles instead of the 64 of a transpose.
  __m512 pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    const __m512 a = (__m512)load(rows + 32 * i), b = (__m512)load(rows + 32 * i + 16);
    pairs[i] = (__m512)join((V)_mm512_unpacklo_ps(a, b), (V)_mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = (__m512)join((V)_mm512_unpacklo_pd(a, b), (V)_mm512_unpackhi_pd(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    eights[i] = (__m512)join((V)_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                             (V)_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  return join((V)_mm512_shuffle_f32x4(eights[0], eights[1], 0x88), (V)_mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
#else
  V result;
  for (int r = 0; r < VL; r++) {
    V v = load(rows + r * VL);
    for (int w = VL / 2; w > 0; w /= 2) {
      float lane[VL];
      store(lane, v);
      v = join(v, load_first(lane + w, w));
    }
    result[r] = v[0];
  }
  return result;
#endif
}
static HFK_INLINE V max_of_each(const float* rows) {
  return join_each(rows, [](V a, V b) __attribute__((always_inline)) { return vmax(a, b); });
}
static HFK_INLINE V sum_of_each(const float* rows) {
  return join_each(rows, [](V a, V b) __attribute__((always_inline)) { return a + b; });
}

// What remains to be done with up to VL query rows after `softmax_rows`.
struct RowResults {
  alignas(64) float factor[VL];  // multiply the product with the values by this
  alignas(64) float gate[VL];
};

// Probabilities of `count` <= VL rows of raw products, `width` apart: prefix at [0, PP) (P of them), real keys at
// [PP, PP + end), of which row r sees visible[r]. low (or null): where they go instead, rounded, `width` apart as well;
// only for the form softmax or without a prefix. ahead (or null) fetches meanwhile.
template <bool fine>
static __attribute__((noinline)) void softmax_rows(const PrefixAttentionArgs& a, float* scores, int64_t width, int64_t count,
                                                   int64_t P, int64_t PP, const int64_t* visible, int64_t end, RowBias& bias,
                                                   int64_t b, int64_t h, int64_t m0, bf16* low, RowResults& out,
                                                   FetchAhead* ahead = nullptr) {
  alignas(64) float top[VL * VL], sum[VL * VL], prefix_sum[VL * VL];
  // Rows beyond `count` must not hold NaN: they share the arithmetic below.
  for (int64_t r = 0; r < VL; r++) {
    store(top + r * VL, zero());
    store(sum + r * VL, broadcast(1.f));
    store(prefix_sum + r * VL, zero());
  }
  const bool joint = a.form == PrefixForm::softmax && P > 0;
  // Without a bias, scores stay raw products and the exponentials scale them. The largest product is the largest score
  // only for a positive factor.
  const bool raw = a.scaling > 0 && !bias.any;
  // Rounded once: it is an error of every exponent.
  const float scaling = float(a.scaling), factor = float(raw ? a.scaling * kExactLog2e : kExactLog2e);
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    V t = raw ? largest_product(s + PP, visible[r], end)
              : finish_scores(s + PP, visible[r], end, scaling, bias.get(b, h, m0 + r));
    if (joint) t = vmax(t, raw ? largest_product(s, P, PP) : finish_scores(s, P, PP, scaling, nullptr));
    store(top + r * VL, t);
  }
  alignas(64) float shift[VL];
  store(shift, max_of_each(top));
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    bf16* l = low ? low + r * width : nullptr;
    store(sum + r * VL, exponentials<fine>(s + PP, end, factor, shift[r], l ? l + PP : nullptr));
    if (joint) store(prefix_sum + r * VL, exponentials<fine>(s, PP, factor, shift[r], l));
    if (ahead) ahead->lines_of_a_query();
  }
  const V prefix = joint ? sum_of_each(prefix_sum) : zero(), total = sum_of_each(sum) + prefix;
  // A NaN among the scores stays one.
  const V inverse = total == zero() ? zero() : 1.f / total;
  store(out.factor, inverse);
  store(out.gate, joint ? prefix * inverse : zero());  // 0 without a prefix, whatever the scores are
  if (a.form == PrefixForm::softmax || P == 0) return;
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    scale_row(s + PP, end, out.factor[r]);
    out.factor[r] = 1.f;
    if (a.form == PrefixForm::no_gating) {
      const float highest = hmax(finish_scores(s, P, PP, scaling, nullptr));
      scale_row(s, PP, 1.f / hsum(exponentials<fine>(s, PP, kLog2e, highest)));
    } else {
      for (int64_t n = 0; n < P; n += VL) store(s + n, vmax(zero(), load(s + n) * scaling));
      for (int64_t n = P; n < PP; n++) s[n] = 0.f;
    }
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
