// pal_attention backward: the sweeps of the forward in reverse, with gradients of the rank rows in float, then the
// weights (pal_attention_weights.h).

// Gradients of rank rows, [B * T][Sp] each: projected, mixed, query, key, value, encoded; and of the decoder's output.
struct PalGrads {
  Shared<float> projected, mixed, query, key, value, encoded, decoded;
  explicit PalGrads(const PalArgs& a)
      : projected(a.B * a.T * a.Sp), mixed(a.B * a.T * a.Sp), query(a.B * a.T * a.Sp), key(a.B * a.T * a.Sp),
        value(a.B * a.T * a.Sp), encoded(a.B * a.T * a.Sp), decoded(a.pre ? a.B * a.T * a.D : 0) {}
};

// grad times the derivative of the activation, for the rows of a tile, as float and as rows of the product.
template <class T, class E>
static const E* pal_decoded_rows(const PalArgs& a, const PalTile& t, float* decoded, int64_t* stride) {
  const T* grad = static_cast<const T*>(a.grad) + t.row * a.grad_stride;
  E* buffer = scratch<E>(0, kPalTileRows * padded_k<E>(a.D));
  if (a.pre == nullptr) return rows_for_product<E>(t.rows, a.D, grad, a.grad_stride, nullptr, buffer, stride);
  const T* pre = static_cast<const T*>(a.pre) + t.row * a.D;
  float* d = decoded + t.row * a.D;
  for (int64_t m = 0; m < t.rows; m++)
    for (int64_t n = 0; n < a.D; n += VL)
      store_first(d + m * a.D + n,
                  load_first(grad + m * a.grad_stride + n, a.D - n) *
                      activate_derivative(a.activation, load_first(pre + m * a.D + n, a.D - n)),
                  a.D - n);
  return rows_for_product<E>(t.rows, a.D, static_cast<const float*>(d), a.D, nullptr, buffer, stride);
}

// G = A W (gradient through one square weight), all columns of a tile; G rows are Sp apart, zero beyond S.
template <class E>
static void pal_through(const PalArgs& a, const PalTile& t, int64_t K, const E* A, int64_t am, const E* W, float* G) {
  pal_product<E>(t.rows, a.S, K, A, am, W, G, a.Sp);
  for (int64_t m = 0; m < t.rows; m++)
    for (int64_t n = a.S; n < a.Sp; n++) G[m * a.Sp + n] = 0.f;
}

// Rows of one head as floats, padded to full vectors.
template <class T>
static void pal_head_rows(int64_t rows, int64_t K, const T* s, int64_t stride, float* d, int64_t ld) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < ld; n += VL) store(d + m * ld + n, n < K ? load_first(s + m * stride + n, K - n) : zero());
}

// One query row: p holds its probabilities and g their gradients dP (anything beyond `visible`). Afterwards p holds what
// weighs the values and g the gradient of the products, P (dP - sum P dP) scale.
// That does not change when all dP move by one number. They are moved by the likeliest key's: where this key takes nearly
// all, its own dP is then 0, the sum runs over the others, and nothing cancels. Unmoved, dP times the rounding error of
// sum P = 1 would stand against the little that the other keys have.
static HFK_INLINE void pal_score_gradients(const PalArgs& a, const Dropout& d, uint32_t row, int64_t visible, int64_t end,
                                           float scale, float* p, float* g) {
  const uint32_t hash = a.dropout > 0 ? dropout_row(d, row) : 0;
  VI lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  V highest = broadcast(-1.f), its_gradient = zero();
  for (int64_t j = 0; j < end; j += VL) {
    V v = lane + int32_t(j) < int32_t(visible) ? load(g + j) : zero(), weight = load(p + j);
    if (a.dropout > 0) v *= dropout_factor(d, hash, j);
    store(g + j, v);
    its_gradient = weight > highest ? v : its_gradient;
    highest = vmax(weight, highest);
  }
  float base = its_gradient[0];
  for (int i = 1, best = 0; i < VL; i++)
    if (highest[i] > highest[best]) best = i, base = its_gradient[i];
  V sum = zero();
  for (int64_t j = 0; j < end; j += VL) {
    V v = load(g + j) - base;
    store(g + j, v);
    sum = fma(v, load(p + j), sum);
  }
  const float mean = hsum(sum);
  for (int64_t j = 0; j < end; j += VL) {
    V weight = load(p + j);
    store(g + j, weight * (load(g + j) - mean) * scale);
    if (a.dropout > 0) store(p + j, weight * dropout_factor(d, hash, j));
  }
}

// Gradients of query, key and value of one head of one sequence; the probabilities are computed again.
template <class T>
static void pal_attend_backward(const PalArgs& a, PalGrads& g, int64_t b, int64_t h) {
  const int64_t K = a.S / a.heads, N = a.T, row = b * N, column = h * K, ld = round_up(K, VL), ldp = round_up(N, VL);
  const float scale = 1.f / std::sqrt(float(K));
  float* base = scratch<float>(0, 6 * N * ld);
  float *q = base, *k = q + N * ld, *v = k + N * ld, *dout = v + N * ld, *dk = dout + N * ld, *dv = dk + N * ld;
  pal_head_rows(N, K, pal_hidden<T>(a, 1, row) + column, a.Sp, q, ld);
  pal_head_rows(N, K, pal_hidden<T>(a, 2, row) + column, a.Sp, k, ld);
  pal_head_rows(N, K, pal_hidden<T>(a, 3, row) + column, a.Sp, v, ld);
  pal_head_rows(N, K, g.mixed.data + row * a.Sp + column, a.Sp, dout, ld);
  memset(dk, 0, N * ld * 8);
  const int64_t panels = packed_size<float>(K, N);
  float *keys = scratch<float>(1, 2 * panels), *values = keys + panels;
  pack<float>(K, N, k, 1, ld, keys, 0, ceil_div(N, PW));
  pack<float>(K, N, v, 1, ld, values, 0, ceil_div(N, PW));
  float *P = scratch<float>(2, kPalQueryRows * ldp), *G = scratch<float>(3, kPalQueryRows * ldp);
  float* C = scratch<float>(4, kPalQueryRows * ld);
  const Dropout d = make_dropout(a.seed, a.dropout);
  for (int64_t q0 = 0; q0 < N; q0 += kPalQueryRows) {
    const int64_t rows = imin(kPalQueryRows, N - q0), seen = a.causal ? q0 + rows : N;
    gemm_store(rows, seen, K, q + q0 * ld, ld, keys, P, ldp);
    gemm_store(rows, seen, K, dout + q0 * ld, ld, values, G, ldp);
    pal_softmax(a, b, h, q0, rows, scale, P, ldp, false);
    for (int64_t m = 0; m < rows; m++) {
      const int64_t i = q0 + m;
      pal_score_gradients(a, d, uint32_t((b * a.heads + h) * N + i), a.causal ? i + 1 : N, round_up(seen, VL), scale,
                          P + m * ldp, G + m * ldp);
    }
    gemm_store(rows, K, seen, G, ldp, k, ld, PW, C, ld);
    pal_keep<float>(rows, K, K, C, ld, nullptr, g.query.data + (row + q0) * a.Sp + column, a.Sp);
    gemm_add(seen, K, rows, G, ldp, q + q0 * ld, ld, PW, dk, ld);
    gemm_add(seen, K, rows, P, ldp, dout + q0 * ld, ld, PW, dv, ld);
  }
  pal_keep<float>(N, K, K, dk, ld, nullptr, g.key.data + row * a.Sp + column, a.Sp);
  pal_keep<float>(N, K, K, dv, ld, nullptr, g.value.data + row * a.Sp + column, a.Sp);
}

// du = dq Wq + dk Wk + dv Wv and dx = du V_E for a tile.
template <class T, class E>
static void pal_encoder_rows(const PalArgs& a, const PalWeight<E>* squares, const PalWeight<E>& encoder, PalGrads& g,
                             const PalTile& t) {
  const float* parts[3] = {g.query.data, g.key.data, g.value.data};
  float* du = g.encoded.data + t.row * a.Sp;
  float* one = scratch<float>(2, kPalTileRows * imax(a.Sp, PW));
  E* buffer = scratch<E>(1, kPalTileRows * padded_k<E>(a.S));
  int64_t am;
  for (int part = 0; part < 3; part++) {
    const E* A = rows_for_product<E>(t.rows, a.S, parts[part] + t.row * a.Sp, a.Sp, nullptr, buffer, &am);
    pal_through<E>(a, t, a.S, A, am, squares[part].panels, part == 0 ? du : one);
    if (part > 0)
      for (int64_t n = 0; n < t.rows * a.Sp; n += VL) store(du + n, load(du + n) + load(one + n));
  }
  if (a.dx == nullptr) return;
  const E* A = rows_for_product<E>(t.rows, a.S, static_cast<const float*>(du), a.Sp, nullptr, buffer, &am);
  constexpr int64_t step = sizeof(E) == 4 ? 24 : 32;
  const int64_t ldc = round_up(a.D, PW);
  float* C = scratch<float>(3, step * ldc);
  for (int64_t m0 = 0; m0 < t.rows; m0 += step) {
    const int64_t rows = imin(step, t.rows - m0);
    pal_product<E>(rows, a.D, a.S, A + m0 * am, am, encoder.panels, C, ldc);
    pal_keep<T>(rows, a.D, a.D, C, ldc, nullptr, static_cast<T*>(a.dx) + (t.row + m0) * a.D, a.D);
  }
}

template <class T, class E>
static void pal_backward_weights(const PalArgs& a, const PalGrads& g);

template <class T>
static void pal_backward_t(const PalArgs& a) {
  typedef Elem<T> E;
  PalGrads g(a);
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
        float *mixed = g.mixed.data + t->row * a.Sp, *projected = g.projected.data + t->row * a.Sp;
        int64_t am;
        const E* A = pal_decoded_rows<T, E>(a, *t, g.decoded, &am);
        pal_through<E>(a, *t, a.D, A, am, decoder.panels, output ? projected : mixed);
        if (output) {
          A = rows_for_product<E>(t->rows, a.S, static_cast<const float*>(projected), a.Sp, nullptr,
                                  scratch<E>(1, kPalTileRows * padded_k<E>(a.S)), &am);
          pal_through<E>(a, *t, a.S, A, am, through.panels, mixed);
        }
        // The heads below write only their own columns.
        for (int64_t m = t->row; m < t->row + t->rows; m++)
          for (int64_t n = a.S; n < a.Sp; n++)
            g.query[m * a.Sp + n] = g.key[m * a.Sp + n] = g.value[m * a.Sp + n] = 0.f;
      }
    }
  });
  parallel(a.B * a.heads, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++)
      if (a.sequence_task[i / a.heads] >= 0) pal_attend_backward<T>(a, g, i / a.heads, i % a.heads);
  });
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

static void pal_backward(const PalArgs& a) {
  a.type == DType::f32 ? pal_backward_t<float>(a) : pal_backward_t<bf16>(a);
}
