// pal_attention backward: the sweeps of the forward in reverse, with gradients of the rank rows in float, then the
// weights, cut over their columns so that every element is one sum over the task's tokens in order.

constexpr int64_t kPalWeightColumns = 128;
constexpr int64_t kPalWeightRows = 64;

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
  VI lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  for (int64_t q0 = 0; q0 < N; q0 += kPalQueryRows) {
    const int64_t rows = imin(kPalQueryRows, N - q0), seen = a.causal ? q0 + rows : N;
    gemm_store(rows, seen, K, q + q0 * ld, ld, keys, P, ldp);
    gemm_store(rows, seen, K, dout + q0 * ld, ld, values, G, ldp);
    pal_softmax(a, b, h, q0, rows, scale, P, ldp, nullptr, false);
    for (int64_t m = 0; m < rows; m++) {
      const int64_t i = q0 + m, visible = a.causal ? i + 1 : N;
      const uint32_t hash = a.dropout > 0 ? dropout_row(d, uint32_t((b * a.heads + h) * N + i)) : 0;
      float *p = P + m * ldp, *ds = G + m * ldp;
      // The mean gradient from the same products as the gradients: they cancel exactly where one key takes all.
      V sum = zero();
      for (int64_t j = 0; j < round_up(seen, VL); j += VL) {
        V kept = a.dropout > 0 ? dropout_factor(d, hash, j) : broadcast(1.f);
        // Beyond the visible columns ds holds anything.
        V v = lane + int32_t(j) < int32_t(visible) ? load(ds + j) * kept : zero();
        store(ds + j, v);
        sum = fma(v, load(p + j), sum);
      }
      const float mean = hsum(sum);
      for (int64_t j = 0; j < round_up(seen, VL); j += VL) {
        V kept = a.dropout > 0 ? dropout_factor(d, hash, j) : broadcast(1.f), v = load(p + j);
        store(ds + j, v * (load(ds + j) - mean) * scale);
        store(p + j, v * kept);
      }
    }
    gemm_store(rows, K, seen, G, ldp, 1, k, ld, PW, C, ld);
    pal_keep<float>(rows, K, K, C, ld, nullptr, g.query.data + (row + q0) * a.Sp + column, a.Sp);
    gemm_add(seen, K, rows, G, 1, ldp, q + q0 * ld, ld, PW, dk, ld);
    gemm_add(seen, K, rows, P, 1, ldp, dout + q0 * ld, ld, PW, dv, ld);
  }
  pal_keep<float>(N, K, K, dk, ld, nullptr, g.key.data + row * a.Sp + column, a.Sp);
  pal_keep<float>(N, K, K, dv, ld, nullptr, g.value.data + row * a.Sp + column, a.Sp);
}

// du = dq Wq + dk Wk + dv Wv and dx = du V_E for a tile.
template <class T, class E>
static void pal_encoder_rows(const PalArgs& a, const PalPack<E>& pack, PalGrads& g, const PalTile& t) {
  const float* parts[3] = {g.query.data, g.key.data, g.value.data};
  float* du = g.encoded.data + t.row * a.Sp;
  float* one = scratch<float>(2, kPalTileRows * imax(a.Sp, PW));
  E* buffer = scratch<E>(1, kPalTileRows * padded_k<E>(a.S));
  int64_t am;
  for (int part = 0; part < 3; part++) {
    const E* A = rows_for_product<E>(t.rows, a.S, parts[part] + t.row * a.Sp, a.Sp, nullptr, buffer, &am);
    pal_through<E>(a, t, a.S, A, am, pack.weight(t.task, kPalQuery + part), part == 0 ? du : one);
    if (part > 0)
      for (int64_t n = 0; n < t.rows * a.Sp; n += VL) store(du + n, load(du + n) + load(one + n));
  }
  if (a.dx == nullptr) return;
  const E* A = rows_for_product<E>(t.rows, a.S, static_cast<const float*>(du), a.Sp, nullptr, buffer, &am);
  constexpr int64_t step = sizeof(E) == 2 ? 32 : 24;
  const int64_t ldc = round_up(a.D, PW);
  float* C = scratch<float>(3, step * ldc);
  for (int64_t m0 = 0; m0 < t.rows; m0 += step) {
    const int64_t rows = imin(step, t.rows - m0);
    pal_product<E>(rows, a.D, a.S, A + m0 * am, am, pack.weight(t.task, kPalEncoder), C, ldc);
    pal_keep<T>(rows, a.D, a.D, C, ldc, nullptr, static_cast<T*>(a.dx) + (t.row + m0) * a.D, a.D);
  }
}

// sums[S][kPalWeightColumns] = coefficients^T source over all tokens of a task.
template <class C, class X>
static void pal_weight_sums(const PalArgs& a, int64_t task, const C* coefficients, const X* source, int64_t stride,
                            int64_t c0, int64_t columns, float* sums) {
  memset(sums, 0, a.S * kPalWeightColumns * 4);
  float* copy = scratch<float>(1, kPalWeightRows * kPalWeightColumns);
  float* wide = scratch<float>(2, kPalWeightRows * a.Sp);
  for (int64_t b = 0; b < a.B; b++) {
    if (a.sequence_task[b] != task) continue;
    for (int64_t i = 0; i < a.T; i += kPalWeightRows) {
      const int64_t rows = imin(kPalWeightRows, a.T - i), row = b * a.T + i;
      const float *A, *S;
      int64_t ss = kPalWeightColumns;
      if constexpr (sizeof(C) == 4) {
        A = coefficients + row * a.Sp;
      } else {
        pal_head_rows(rows, a.Sp, coefficients + row * a.Sp, a.Sp, wide, a.Sp);
        A = wide;
      }
      bool direct = false;
      if constexpr (sizeof(X) == 4) direct = columns % VL == 0;
      if (direct) {
        S = reinterpret_cast<const float*>(source + row * stride + c0);
        ss = stride;
      } else {
        pal_head_rows(rows, columns, source + row * stride + c0, stride, copy, kPalWeightColumns);
        S = copy;
      }
      gemm_add(a.S, columns, rows, A, 1, a.Sp, S, ss, PW, sums, kPalWeightColumns);
    }
  }
}

// Writes sums as gradient[r][c0 + c], or transposed as gradient[c0 + c][r].
template <class T>
static void pal_write_weight(const PalArgs& a, const float* sums, int64_t c0, int64_t columns, int64_t N, bool transposed,
                             T* gradient) {
  for (int64_t r = 0; r < a.S; r++)
    for (int64_t c = 0; c < columns; c++)
      from_float(sums[r * kPalWeightColumns + c], transposed ? gradient[(c0 + c) * a.S + r] : gradient[r * N + c0 + c]);
}

// Column sums over the tokens of a task.
template <class X, class T>
static void pal_bias_sums(const PalArgs& a, int64_t task, const X* source, int64_t stride, int64_t N, T* gradient) {
  float* sums = scratch<float>(1, round_up(N, VL));
  memset(sums, 0, round_up(N, VL) * 4);
  for (int64_t b = 0; b < a.B; b++) {
    if (a.sequence_task[b] != task) continue;
    for (int64_t row = b * a.T; row < (b + 1) * a.T; row++)
      for (int64_t n = 0; n < N; n += VL) store(sums + n, load(sums + n) + load_first(source + row * stride + n, N - n));
  }
  for (int64_t n = 0; n < N; n++) from_float(sums[n], gradient[n]);
}

template <class T>
static void pal_backward_weights(const PalArgs& a, PalGrads& g) {
  const int64_t panels = ceil_div(imax(a.D, a.S), kPalWeightColumns), items = kPalFamilies * panels;
  const float* coefficients[kPalMatrices] = {g.encoded.data, g.query.data, g.key.data, g.value.data, nullptr,
                                             g.projected.data};
  parallel(a.tasks * items, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t task = i / items, panel = i % panels, c0 = panel * kPalWeightColumns;
      const int family = int(i % items / panels), matrix = family % kPalMatrices;
      T* gradient = static_cast<T*>(a.task[task].grad[family]);
      const int64_t N = matrix == kPalEncoder || matrix == kPalDecoder ? a.D : a.S, columns = imin(kPalWeightColumns, N - c0);
      if (gradient == nullptr || columns <= 0) continue;
      const T *x = static_cast<const T*>(a.x), *grad = static_cast<const T*>(a.grad);
      if (family >= kPalMatrices) {
        if (panel > 0) continue;
        if (matrix == kPalDecoder && a.pre)
          pal_bias_sums(a, task, g.decoded.data, a.D, a.D, gradient);
        else if (matrix == kPalDecoder)
          pal_bias_sums(a, task, grad, a.grad_stride, a.D, gradient);
        else
          pal_bias_sums(a, task, coefficients[matrix], a.Sp, a.S, gradient);
        continue;
      }
      float* sums = scratch<float>(3, a.S * kPalWeightColumns);
      if (matrix == kPalDecoder) {
        const T* into = pal_hidden<T>(a, a.task[task].weight[kPalOutput] ? 5 : 4, 0);
        if (a.pre)
          pal_weight_sums(a, task, into, static_cast<const float*>(g.decoded.data), a.D, c0, columns, sums);
        else
          pal_weight_sums(a, task, into, grad, a.grad_stride, c0, columns, sums);
      } else if (matrix == kPalEncoder) {
        pal_weight_sums(a, task, coefficients[matrix], x, a.x_stride, c0, columns, sums);
      } else {
        pal_weight_sums(a, task, coefficients[matrix], static_cast<const T*>(pal_hidden<T>(a, matrix == kPalOutput ? 4 : 0, 0)),
                        a.Sp, c0, columns, sums);
      }
      pal_write_weight(a, sums, c0, columns, N, matrix == kPalDecoder, gradient);
    }
  });
}

template <class T, class E>
static void pal_backward_t(const PalArgs& a) {
  PalPack<E> pack(a, true, static_cast<const T*>(nullptr));
  PalGrads g(a);
  parallel(a.tiles, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const PalTile& t = a.tile[i];
      const bool output = pack.weight(t.task, kPalOutput) != nullptr;
      float *mixed = g.mixed.data + t.row * a.Sp, *projected = g.projected.data + t.row * a.Sp;
      int64_t am;
      const E* A = pal_decoded_rows<T, E>(a, t, g.decoded, &am);
      pal_through<E>(a, t, a.D, A, am, pack.weight(t.task, kPalDecoder), output ? projected : mixed);
      if (output) {
        A = rows_for_product<E>(t.rows, a.S, static_cast<const float*>(projected), a.Sp, nullptr,
                                scratch<E>(1, kPalTileRows * padded_k<E>(a.S)), &am);
        pal_through<E>(a, t, a.S, A, am, pack.weight(t.task, kPalOutput), mixed);
      }
      // The heads below write only their own columns.
      for (int64_t m = t.row; m < t.row + t.rows; m++)
        for (int64_t n = a.S; n < a.Sp; n++)
          g.query[m * a.Sp + n] = g.key[m * a.Sp + n] = g.value[m * a.Sp + n] = 0.f;
    }
  });
  parallel(a.B * a.heads, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++)
      if (a.sequence_task[i / a.heads] >= 0) pal_attend_backward<T>(a, g, i / a.heads, i % a.heads);
  });
  parallel(a.tiles, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) pal_encoder_rows<T>(a, pack, g, a.tile[i]);
  });
  if (a.dx)
    for (int64_t b = 0; b < a.B; b++)
      if (a.sequence_task[b] < 0) memset(static_cast<T*>(a.dx) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
  pal_backward_weights<T>(a, g);
}

static void pal_backward(const PalArgs& a) {
  a.type == DType::f32 ? pal_backward_t<float, float>(a) : pal_backward_t<bf16, Elem<bf16>>(a);
}
