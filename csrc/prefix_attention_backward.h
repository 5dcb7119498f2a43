// prefix_attention backward. One work item is one key head of a unit: up to kPrefixUnitRows batch rows of one task. It
// recomputes the probabilities, and sums the gradients of its prefix over its rows; units are added in order afterwards,
// so that nothing depends on the number of threads. Gradients of keys and values are summed transposed, [D][columns]:
//   gK += q^T dS,  gV += dO^T p   for blocks of queries.

// Rows as the product wants them, side by side: the products below walk down their columns, and rows whole tokens apart
// would share a few sets of the first-level cache.
template <class E, class T>
static HFK_INLINE const E* near_rows(int64_t rows, int64_t D, const T* s, int64_t stride, E* buffer, int64_t* out_stride) {
  if constexpr (sizeof(E) == 4 && sizeof(T) == 4) {
    for (int64_t m = 0; m < rows; m++)
      for (int64_t d = 0; d < D; d += VL) store_first(buffer + m * D + d, load_first(s + m * stride + d, D - d), D - d);
    *out_stride = D;
    return buffer;
  }
  return rows_for_product<E>(rows, D, s, stride, nullptr, buffer, out_stride);
}

#if defined(__AVX512BF16__)
// C += A B; M and N are rounded up to 16 and 32 (A, B and C have that much room), K is at most one block of queries.
static __attribute__((noinline)) void gemm_add_pairs(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am,
                                                     const bf16* B, float* C, int64_t ldc) {
  const int64_t Kp = padded_k<bf16>(K);
#if defined(__AMX_TILE__)
  TileConfig config;
  for (int64_t n = 0; n < N; n += 32, B += Kp * 32)
    for (int64_t m = 0; m < M; m += 32)
      if (M - m > 16)
        tile_piece<true, true>(Kp, A + m * am, am, B, C + m * ldc + n, ldc, true);
      else
        tile_piece<false, true>(Kp, A + m * am, am, B, C + m * ldc + n, ldc, true);
#else
  for (int64_t n = 0; n < N; n += 32, B += Kp * 32)
    gemm(M, 32, K, A, am, 1, B, [=](int64_t m, int64_t j, V v) __attribute__((always_inline)) {
      store(C + m * ldc + n + j, load(C + m * ldc + n + j) + v);
    });
#endif
}

// out[D rounded up to 32][padded rows] = the transpose of `rows` rows of D elements: pairs first, then 16 x 16 dwords.
static void transpose_rows(int64_t rows, int64_t D, const bf16* s, int64_t stride, bf16* panel, bf16* out) {
  const int64_t Kp = padded_k<bf16>(rows);
  for (int64_t c = 0; c < D; c += 32) {
    pair_panel(rows, Kp, imin(32, D - c), s + c, stride, panel);
    for (int64_t d = 0; d < 32; d += 16)
      for (int64_t k = 0; k < Kp; k += 32) transpose16(panel + k * 32 + d * 2, 128, out + (c + d) * Kp + k, Kp * 2, 16);
  }
}
// Rows of `width` bf16 become panels of pairs; columns is a multiple of 32.
static void pair_rows(int64_t rows, int64_t columns, const bf16* s, int64_t width, bf16* d) {
  const int64_t Kp = padded_k<bf16>(rows);
  for (int64_t n = 0; n < columns; n += 32, d += Kp * 32) pair_panel(rows, Kp, 32, s + n, width, d);
}
#endif

// out[j][d] = g[d][j] * factor for j < n, d < D; g has readable columns up to n rounded up to 16.
template <class T>
static void write_transposed(const float* g, int64_t width, int64_t n, int64_t D, float factor, T* out, int64_t stride) {
#if defined(__AVX512F__)
  alignas(64) float t[16 * 16];
  for (int64_t d = 0; d < D; d += 16)
    for (int64_t j = 0; j < n; j += 16) {
      transpose16(g + d * width + j, width * 4, t, 64, int(imin(16, D - d)));
      for (int64_t l = 0; l < imin(16, n - j); l++)
        store_first(out + (j + l) * stride + d, load(t + l * 16) * factor, D - d);
    }
#else
  for (int64_t j = 0; j < n; j++)
    for (int64_t d = 0; d < D; d++) from_float(g[d * width + j] * factor, out[j * stride + d]);
#endif
}

// The t of the largest p: the gradient of the likeliest column's probability.
static HFK_INLINE float likeliest_gradient(const float* p, const float* t, int64_t end) {
  V highest = broadcast(-1.f), its_gradient = zero();
  for (int64_t n = 0; n < end; n += VL) {
    const V weight = load(p + n);
    its_gradient = weight > highest ? load(t + n) : its_gradient;
    highest = vmax(weight, highest);
  }
  int best = 0;
  for (int i = 1; i < VL; i++)
    if (highest[i] > highest[best]) best = i;
  return its_gradient[best];
}
// Sum of p (t - base).
static HFK_INLINE float dot_rows(const float* p, const float* t, int64_t end, float base) {
  V a = zero(), b = zero();
  int64_t n = 0;
  for (; n + 2 * VL <= end; n += 2 * VL) {
    a = fma(load(p + n), load(t + n) - base, a);
    b = fma(load(p + n + VL), load(t + n + VL) - base, b);
  }
  for (; n < end; n += VL) a = fma(load(p + n), load(t + n) - base, a);
  return hsum(a + b);
}
// p *= factor; t = p * (t - sum p t), the gradient of the scores. low_p and low_t (or null): both rounded, instead.
// In float32 all t are first moved by the likeliest column's, which changes nothing but the rounding: where that column
// has nearly all the weight nothing cancels (see pal_attention_backward.h). bfloat16 rounds more than that afterwards.
static HFK_INLINE void score_gradient(float* p, float* t, int64_t end, float factor, bool fine, bf16* low_p = nullptr,
                                      bf16* low_t = nullptr) {
  const float base = fine ? likeliest_gradient(p, t, end) : 0.f, delta = factor * dot_rows(p, t, end, base);
  for (int64_t n = 0; n < end; n += VL) {
    const V x = load(p + n) * factor, y = x * (load(t + n) - base - delta);
    low_p ? store(low_p + n, x) : store(p + n, x);
    low_p ? store(low_t + n, y) : store(t + n, y);
  }
}
static HFK_INLINE void clear(float* s, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; n += VL) store(s + n, zero());
}

// One query row after `softmax_rows`: s becomes the probabilities that weigh the values, t (dO . v) the gradient of the
// scores; with low_s and low_t both rounded there as well (or instead).
static __attribute__((noinline)) void gradient_row(const PrefixAttentionBackwardArgs& a, const Dropout& drop, float* s,
                                                   float* t, float factor, int64_t P, int64_t PP, int64_t visible,
                                                   int64_t seen, int64_t end, int64_t line, bf16* low_s, bf16* low_t) {
  // The products wrote whole vectors up to P and `seen`; what is behind them is not written yet.
  clear(t, round_up(P, VL), PP);
  clear(t + PP, round_up(seen, VL), end);
  const uint32_t hash = a.dropout_on ? dropout_row(drop, uint32_t(line)) : 0;
  if (a.dropout_on) drop_both(drop, hash, t, PP, end);
  if (a.form == PrefixForm::softmax) {
    if (a.grad_gate)
      for (int64_t n = 0; n < PP; n += VL) store(t + n, load(t + n) + a.grad_gate[line]);
    if (low_s && !a.dropout_on && !a.grad_scores) return score_gradient(s, t, PP + end, factor, false, low_s, low_t);
    score_gradient(s, t, PP + end, factor, !low_s);
  } else {
    score_gradient(s + PP, t + PP, end, factor, !low_s);
    if (PP && a.form == PrefixForm::no_gating) score_gradient(s, t, PP, 1.f, !low_s);
    if (PP && a.form == PrefixForm::relu)
      for (int64_t n = 0; n < PP; n += VL) store(t + n, load(s + n) > zero() ? load(t + n) : zero());
  }
  if (a.dropout_on) drop_both(drop, hash, s, PP, end);
  if (a.grad_scores) {
    float* out = a.grad_scores + line * a.Tk;
    for (int64_t j = 0; j < a.Tk; j++) out[j] = j < visible ? t[PP + j] : 0.f;
  }
  for (int64_t n = 0; low_s && n < PP + end; n += VL) {
    store(low_s + n, load(s + n));
    store(low_t + n, load(t + n));
  }
}

template <class T, class E>
static void prefix_attention_backward_t(const PrefixAttentionBackwardArgs& a) {
  const PrefixShape z = prefix_shape<E>(a);
  constexpr bool fine = sizeof(T) == 4, low = sizeof(E) == 2;
  const Dropout drop = make_dropout(a.seed, a.dropout);
  const int64_t D = a.D, Dp = padded_k<E>(D), Dv = round_up(D, VL), Tkp = padded_k<E>(a.Tk), G = a.G;
  const bool want_prefix = a.grad_prefix_key != nullptr, want_real = a.grad_key.data != nullptr;
  PackedPrefixes<E> prefix_keys(a.tasks, G, columns_size<E>(D, z.PP)), prefix_values(a.tasks, G, columns_size<E>(D, z.PP)),
      prefix_rows(a.tasks, G, rows_size<E>(D, z.PP));
  parallel(a.tasks * G, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t t = i / G, g = i % G, P = a.prefix_length[t], PP = padded_prefix(P);
      const T *pk = static_cast<const T*>(a.prefix_key[t]) + g * P * D, *pv = static_cast<const T*>(a.prefix_value[t]) + g * P * D;
      pack_columns(P, D, pk, D, prefix_keys.at(t, g));
      pack_columns(P, D, pv, D, prefix_values.at(t, g));
      pack_rows(P, PP, D, pk, D, prefix_rows.at(t, g), PP * kColumns<E>);
    }
  });
  const int64_t partial = 2 * D * z.PP;
  Shared<float> partials(want_prefix ? a.units * G * partial : 0);
  parallel(a.units * G, [&](int64_t i0, int64_t i1) {
    const int64_t height = z.PP + Tkp, block = z.block, width = z.width, Dr = round_up(D, 16);
    E* keys = scratch<E>(0, columns_size<E>(D, a.Tk));
    E* values = scratch<E>(1, columns_size<E>(D, a.Tk));
    E* key_rows = scratch<E>(2, rows_size<E>(D, height));
    E* query_rows = scratch<E>(3, 2 * block * Dp);
    E* grad_rows = query_rows + block * Dp;
    float* scores = scratch<float>(4, 2 * block * width);
    float* gradients = scores + block * width;
    // Whole tiles of 16 rows are added to.
    float* sums = scratch<float>(5, 2 * Dr * width);
    float *key_sums = sums, *value_sums = sums + Dr * width;
    float* mixed = scratch<float>(6, block * Dv);
    RowBias bias(a, scratch<float>(7, z.TP + VL));
    // bfloat16 only: probabilities and score gradients as rows and as pairs, and the transposed blocks.
    E* low_rows = low ? scratch<E>(8, 2 * block * width) : nullptr;
    E* pairs = low ? scratch<E>(9, block * round_up(width, 32)) : nullptr;
    E* turned = low ? scratch<E>(10, 2 * round_up(D, 32) * block) : nullptr;
    for (int64_t item = i0; item < i1; item++) {
      const int64_t u = item / G, g = item % G, task = a.unit_task[u];
      const int64_t P = task >= 0 ? a.prefix_length[task] : 0, PP = padded_prefix(P), panel = (PP + Tkp) * kColumns<E>;
      for (int64_t d = 0; d < 2 * Dr; d++) clear(sums + d * width, 0, PP);
      if (PP) place_rows(PP, D, prefix_rows.at(task, g), key_rows, panel);
      for (int64_t j = a.unit_start[u]; j < a.unit_start[u + 1]; j++) {
        const int64_t b = a.order[j];
        const T *k = head_at<const T>(a.key, b, g), *v = head_at<const T>(a.value, b, g);
        pack_columns(a.Tk, D, k, a.key.token, keys);
        pack_columns(a.Tk, D, v, a.value.token, values);
        pack_rows(a.Tk, Tkp, D, k, a.key.token, key_rows + PP * kColumns<E>, panel);
        for (int64_t d = 0; d < 2 * Dr; d++) clear(sums + d * width, PP, PP + z.TP);
        for (int64_t h = g * z.rep; h < (g + 1) * z.rep; h++)
          for (int64_t m0 = 0; m0 < a.Tq; m0 += block) {
            const int64_t mb = imin(block, a.Tq - m0), seen = visible_keys(a, m0 + mb - 1), end = round_up(seen, 32);
            int64_t qm, gm;
            const E* q = near_rows<E>(mb, D, head_at<const T>(a.query, b, h) + m0 * a.query.token, a.query.token,
                                      query_rows, &qm);
            const E* o = near_rows<E>(mb, D, head_at<const T>(a.grad_out, b, h) + m0 * a.grad_out.token, a.grad_out.token,
                                      grad_rows, &gm);
            if (PP) {
              panels_product(mb, P, D, q, qm, prefix_keys.at(task, g), columns_panel<E>(D), scores, width);
              panels_product(mb, P, D, o, gm, prefix_values.at(task, g), columns_panel<E>(D), gradients, width);
            }
            if (seen) {
              panels_product(mb, seen, D, q, qm, keys, columns_panel<E>(D), scores + PP, width);
              panels_product(mb, seen, D, o, gm, values, columns_panel<E>(D), gradients + PP, width);
            }
            for (int64_t m = 0; m < mb; m += VL) {
              const int64_t count = imin(VL, mb - m);
              int64_t visible[VL];
              for (int64_t r = 0; r < count; r++) visible[r] = visible_keys(a, m0 + m + r);
              RowResults results;
              softmax_rows<fine>(a, scores + m * width, width, count, P, PP, visible, end, bias, b, h, m0 + m, nullptr,
                                 results);
              for (int64_t r = 0; r < count; r++) {
                float *s = scores + (m + r) * width, *t = gradients + (m + r) * width;
                bf16* rounded = low ? reinterpret_cast<bf16*>(low_rows) + (m + r) * width : nullptr;
                gradient_row(a, drop, s, t, results.factor[r], P, PP, visible[r], seen, end,
                             (b * a.H + h) * a.Tq + m0 + m + r, rounded, low ? rounded + block * width : nullptr);
              }
            }
            const E* score_rows;
            if constexpr (low)
              score_rows = low_rows + block * width;
            else
              score_rows = gradients;
            if (a.grad_query.data) {
              panels_product(mb, D, PP + seen, score_rows, width, key_rows, panel, mixed, Dv);
              T* out = head_at<T>(a.grad_query, b, h) + m0 * a.grad_query.token;
              for (int64_t m = 0; m < mb; m++)
                for (int64_t d = 0; d < D; d += VL)
                  store_first(out + m * a.grad_query.token + d, load(mixed + m * Dv + d) * a.scaling, D - d);
            }
            if (!want_prefix && !want_real) continue;
            if constexpr (low) {
              const int64_t Kp = padded_k<E>(mb);
              E* spare = turned + round_up(D, 32) * block;
              transpose_rows(mb, D, q, qm, spare, turned);
              pair_rows(mb, PP + end, low_rows + block * width, width, pairs);
              gemm_add_pairs(D, PP + end, mb, turned, Kp, pairs, key_sums, width);
              transpose_rows(mb, D, o, gm, spare, turned);
              pair_rows(mb, PP + end, low_rows, width, pairs);
              gemm_add_pairs(D, PP + end, mb, turned, Kp, pairs, value_sums, width);
            } else {
              gemm_add(D, PP + end, mb, q, qm, gradients, width, PW, key_sums, width);
              gemm_add(D, PP + end, mb, o, gm, scores, width, PW, value_sums, width);
            }
          }
        if (want_real) {
          write_transposed(key_sums + PP, width, a.Tk, D, a.scaling, head_at<T>(a.grad_key, b, g), a.grad_key.token);
          write_transposed(value_sums + PP, width, a.Tk, D, 1.f, head_at<T>(a.grad_value, b, g), a.grad_value.token);
        }
      }
      if (want_prefix && PP) {
        float* p = partials + (u * G + g) * partial;
        for (int64_t d = 0; d < D; d++) {
          memcpy(p + d * z.PP, key_sums + d * width, size_t(PP) * 4);
          memcpy(p + (D + d) * z.PP, value_sums + d * width, size_t(PP) * 4);
        }
      }
    }
  });
  if (!want_prefix) return;
  parallel(a.tasks * G, [&](int64_t i0, int64_t i1) {
    float* total = scratch<float>(5, partial);
    for (int64_t i = i0; i < i1; i++) {
      const int64_t t = i / G, g = i % G, P = a.prefix_length[t];
      memset(total, 0, size_t(partial) * 4);
      for (int64_t u = 0; u < a.units; u++) {
        if (a.unit_task[u] != t) continue;
        const float* p = partials + (u * G + g) * partial;
        for (int64_t d = 0; d < 2 * D; d++)
          for (int64_t n = 0; n < padded_prefix(P); n += VL)
            store(total + d * z.PP + n, load(total + d * z.PP + n) + load(p + d * z.PP + n));
      }
      write_transposed(total, z.PP, P, D, a.scaling, static_cast<T*>(a.grad_prefix_key[t]) + g * P * D, D);
      write_transposed(total + D * z.PP, z.PP, P, D, 1.f, static_cast<T*>(a.grad_prefix_value[t]) + g * P * D, D);
    }
  });
}

static void prefix_attention_backward(const PrefixAttentionBackwardArgs& a) {
  a.type == DType::f32 ? prefix_attention_backward_t<float, float>(a) : prefix_attention_backward_t<bf16, Elem<bf16>>(a);
}
