// prefix_attention: what forward and backward share. Layout of a score row: [prefix, padded to PP][real keys, padded].
// Padding has score -inf, hence probability 0. Scores are in units of log 2: p = 2^(s - shift).

constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

static HFK_INLINE float minus_infinity() { return -__builtin_inff(); }

// 2^x for x <= 0 and -inf. `fine` has float32 accuracy, else 3e-6: enough under bfloat16 rounding.
template <bool fine>
static HFK_INLINE V exp2_nonpositive(V x) {
  x = vmax(x, broadcast(-200.f));
#if defined(__AVX512F__)
  V n = (V)_mm512_roundscale_ps((__m512)x, 8);
#else
  x = vmax(x, broadcast(-126.f));
  V magic = broadcast(12582912.f), shifted = x + magic, n = shifted - magic;
#endif
  V f = x - n, p;
  if (fine) {
    p = fma(broadcast(1.534581038e-4f), f, broadcast(1.339993121e-3f));
    p = fma(p, f, broadcast(9.618488963e-3f));
    p = fma(p, f, broadcast(5.550328777e-2f));
    p = fma(p, f, broadcast(0.2402264689f));
    p = fma(p, f, broadcast(0.6931472057f));
    p = fma(p, f, broadcast(1.f));
  } else {
    p = fma(broadcast(9.570100019e-3f), f, broadcast(5.591786017e-2f));
    p = fma(p, f, broadcast(0.2402474487f));
    p = fma(p, f, broadcast(0.6931218148f));
    p = fma(p, f, broadcast(0.9999992614f));
  }
#if defined(__AVX512F__)
  return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  V y = (V)(((VI)shifted - (VI)magic + 127) << 23) * p;
  return x > broadcast(-126.f) ? y : zero();
#endif
}

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
  s.block = sizeof(E) == 2 ? 64 : 48;
  return s;
}

// Additive bias of one query row over the real keys, in log2 units, from mask and position bias.
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
      // The lowest finite float must stay finite in log2 units: a row of nothing else is a uniform softmax.
      for (int64_t j = 0; j < n; j++) {
        const float x = s[j * m.key], y = x * kLog2e;
        row[j] = x == minus_infinity() ? x : y < -3.4e38f ? -3.4e38f : y;
      }
    } else {
      for (int64_t j = 0; j < n; j++) row[j] = 0.f;
    }
    if (a.bias.data) {
      const ScoreView& m = a.bias;
      const float* s = static_cast<const float*>(m.data) + row_b * m.row + row_h * m.head + i * m.query;
      for (int64_t j = 0; j < n; j++) row[j] += s[j * m.key] * kLog2e;
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

// Turns raw products into scores in log2 units, masks the padding of [valid, end), and returns the largest, lane by lane.
static HFK_INLINE V finish_scores(float* s, int64_t valid, int64_t end, float factor, const float* bias) {
  const V c = broadcast(factor), none = broadcast(minus_infinity());
  V top = none;
  int64_t n = 0;
  for (; n + VL <= valid; n += VL) {
    V x = bias ? fma(load(s + n), c, load(bias + n)) : load(s + n) * c;
    store(s + n, x);
    top = vmax(top, x);
  }
  if (n < valid) {
    V x = bias ? fma(load(s + n), c, load(bias + n)) : load(s + n) * c;
    x = keep_first(x, valid - n, none);
    store(s + n, x);
    top = vmax(top, x);
    n += VL;
  }
  for (; n < end; n += VL) store(s + n, none);
  return top;
}

// p = 2^(s - shift) in place; returns the sum, lane by lane. A shift of -inf (nothing to see) gives zeros.
template <bool fine>
static HFK_INLINE V exponentials(float* s, int64_t end, float shift) {
  const V m = broadcast(shift == minus_infinity() ? 0.f : shift);
  V sum0 = zero(), sum1 = zero();
  int64_t n = 0;
  for (; n + 2 * VL <= end; n += 2 * VL) {
    V x = exp2_nonpositive<fine>(load(s + n) - m), y = exp2_nonpositive<fine>(load(s + n + VL) - m);
    store(s + n, x);
    store(s + n + VL, y);
    sum0 += x;
    sum1 += y;
  }
  for (; n < end; n += VL) {
    V x = exp2_nonpositive<fine>(load(s + n) - m);
    store(s + n, x);
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
static HFK_INLINE void transpose_vectors(float* rows) {
#if defined(__AVX512F__)
  transpose16(rows, 64, rows, 64, 16);
#else
  for (int i = 0; i < VL; i++)
    for (int j = 0; j < i; j++) {
      float t = rows[i * VL + j];
      rows[i * VL + j] = rows[j * VL + i];
      rows[j * VL + i] = t;
    }
#endif
}
static HFK_INLINE V max_of_each(float* rows) {
  transpose_vectors(rows);
  V m = load(rows);
  for (int i = 1; i < VL; i++) m = vmax(m, load(rows + i * VL));
  return m;
}
static HFK_INLINE V sum_of_each(float* rows) {
  transpose_vectors(rows);
  V t = load(rows);
  for (int i = 1; i < VL; i++) t += load(rows + i * VL);
  return t;
}

// What remains to be done with up to VL query rows after `softmax_rows`.
struct RowResults {
  alignas(64) float factor[VL];  // multiply the product with the values by this
  alignas(64) float gate[VL];
};

// Probabilities of `count` <= VL rows of raw products, `width` apart: prefix at [0, PP) (P of them), real keys at
// [PP, PP + end), of which row r sees visible[r]; bias[r] is its additive bias or null.
template <bool fine>
static __attribute__((noinline)) void softmax_rows(const PrefixAttentionArgs& a, float* scores, int64_t width, int64_t count, int64_t P,
                                    int64_t PP, const int64_t* visible, int64_t end, RowBias& bias, int64_t b, int64_t h,
                                    int64_t m0, RowResults& out) {
  const float c = a.scaling * kLog2e;
  alignas(64) float top[VL * VL], sum[VL * VL], prefix_sum[VL * VL];
  // Rows beyond `count` must not hold NaN: they share the arithmetic below.
  for (int64_t r = 0; r < VL; r++) {
    store(top + r * VL, zero());
    store(sum + r * VL, broadcast(1.f));
    store(prefix_sum + r * VL, zero());
  }
  const bool joint = a.form == PrefixForm::softmax && P > 0;
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    V t = finish_scores(s + PP, visible[r], end, c, bias.get(b, h, m0 + r));
    if (joint) t = vmax(t, finish_scores(s, P, PP, c, nullptr));
    store(top + r * VL, t);
  }
  alignas(64) float shift[VL];
  store(shift, max_of_each(top));
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    store(sum + r * VL, exponentials<fine>(s + PP, end, shift[r]));
    if (joint) store(prefix_sum + r * VL, exponentials<fine>(s, PP, shift[r]));
  }
  const V prefix = joint ? sum_of_each(prefix_sum) : zero(), total = sum_of_each(sum) + prefix;
  const V factor = total > zero() ? 1.f / total : zero();
  store(out.factor, factor);
  store(out.gate, prefix * factor);
  if (a.form == PrefixForm::softmax || P == 0) return;
  for (int64_t r = 0; r < count; r++) {
    float* s = scores + r * width;
    scale_row(s + PP, end, out.factor[r]);
    out.factor[r] = 1.f;
    if (a.form == PrefixForm::no_gating) {
      const float highest = hmax(finish_scores(s, P, PP, c, nullptr));
      scale_row(s, PP, 1.f / hsum(exponentials<fine>(s, PP, highest)));
    } else {
      for (int64_t n = 0; n < P; n += VL) store(s + n, vmax(load(s + n) * a.scaling, zero()));
      for (int64_t n = P; n < PP; n++) s[n] = 0.f;
    }
  }
}

// Packed operands of this op: panels of kColumns<E> columns, [columns / kColumns][height][kColumns]. For bfloat16 that is
// pack.h's half panel (pairs of rows side by side), which a product may use with any K up to the panel's height.
template <class E>
constexpr int64_t kColumns = sizeof(E) == 2 ? 32 : PW;

// C[M][N] = A B for B in panels of `panel` elements.
template <class E>
static HFK_INLINE void panels_product(int64_t M, int64_t N, int64_t K, const E* A, int64_t am, const E* B, int64_t panel,
                                      float* C, int64_t ldc) {
  if constexpr (sizeof(E) == 4) {
    gemm_store(M, N, K, A, am, 1, B, PW, panel, C, ldc);
  } else {
    for (int64_t n = 0; n < N; n += 32, B += panel) gemm_store(M, imin(32, N - n), K, A, am, B, C + n, ldc);
  }
}

// Operands of all tasks and key heads, packed once a call: n rows of a prefix as columns (D along k), or as rows.
template <class E>
struct PackedPrefixes {
  int64_t G, size;
  Shared<E> panels;
  HFK_INLINE PackedPrefixes(int64_t tasks, int64_t groups, int64_t elements)
      : G(groups), size(round_up(elements, 32)), panels(tasks * groups * size) {}
  HFK_INLINE E* at(int64_t task, int64_t g) const { return panels.data + (task * G + g) * size; }
};
template <class E>
static HFK_INLINE int64_t columns_panel(int64_t D) {
  return padded_k<E>(D) * kColumns<E>;
}
template <class E>
static HFK_INLINE int64_t columns_size(int64_t D, int64_t n) {
  return packed_size<E>(D, n);
}
template <class E>
static HFK_INLINE int64_t rows_size(int64_t D, int64_t height) {
  return ceil_div(D, kColumns<E>) * height * kColumns<E>;
}

template <class E, class T>
static __attribute__((noinline)) void pack_columns(int64_t n, int64_t D, const T* s, int64_t stride, E* d) {
  pack<E>(D, n, s, int64_t(1), stride, d, 0, ceil_div(n, PW));
}

#if defined(__AVX512BF16__)
// Columns [0, columns) of n rows as one panel of pairs; rows n..height and columns beyond are zero.
static void pair_panel(int64_t n, int64_t height, int64_t columns, const bf16* s, int64_t stride, bf16* d) {
  const __mmask16 low = columns >= 16 ? 0xffff : __mmask16((1u << columns) - 1);
  const __mmask16 high = columns >= 32 ? 0xffff : columns > 16 ? __mmask16((1u << (columns - 16)) - 1) : 0;
  for (int64_t k = 0; k < height; k += 2, d += 64)
    for (int half = 0; half < 2; half++) {
      const __mmask16 first = k < n ? (half ? high : low) : 0, second = k + 1 < n ? (half ? high : low) : 0;
      const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, s + k * stride + 16 * half));
      const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, s + (k + 1) * stride + 16 * half));
      _mm512_storeu_si512(d + 32 * half, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
}
#endif

// Rows [0, n) of s become rows [0, n) of every panel; rows up to `height` are zeroed; panels are `panel` elements apart.
template <class E, class T>
static __attribute__((noinline)) void pack_rows(int64_t n, int64_t height, int64_t D, const T* s, int64_t stride, E* d,
                                                int64_t panel) {
  for (int64_t c = 0; c < D; c += kColumns<E>, d += panel) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(E) == 2) {
      pair_panel(n, height, imin(32, D - c), s + c, stride, d);
      continue;
    }
#endif
    if constexpr (sizeof(E) == 4) {
      if (n > 0) pack_panel(n, imin(PW, D - c), s + c, stride, 1, nullptr, d);
      if (height > n) memset(d + n * PW, 0, size_t((height - n) * PW) * 4);
    }
  }
}
// Copies packed rows to the top of an operand with taller panels.
template <class E>
static HFK_INLINE void place_rows(int64_t PP, int64_t D, const E* s, E* d, int64_t panel) {
  for (int64_t c = 0; c < D; c += kColumns<E>, d += panel, s += PP * kColumns<E>)
    memcpy(static_cast<void*>(d), s, size_t(PP * kColumns<E>) * sizeof(E));
}

template <class T>
static HFK_INLINE T* head_at(const HeadsView& v, int64_t b, int64_t h) {
  return static_cast<T*>(v.data) + b * v.row + h * v.head;
}

// Fetches one row of a tensor into the second-level cache.
template <class T>
static HFK_INLINE void fetch_row(const HeadsView& v, int64_t b, int64_t h, int64_t token, int64_t D) {
  const char* p = reinterpret_cast<const char*>(head_at<const T>(v, b, h) + token * v.token);
  for (int64_t byte = 0; byte < D * int64_t(sizeof(T)); byte += 64) prefetch_l2(p + byte);
}
