// pal_attention forward, in three sweeps that each keep their rows in cache: tiles of tokens through encoder, query, key
// and value; heads of sequences through attention; tiles through output projection, decoder and activation.

constexpr int64_t kPalQueryRows = 48;  // queries of one head that attend at a time

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
template <class T, class E>
static PalWeight<E> pal_pack(const PalArgs& a, int64_t task, int family, bool transposed, E* panels, float* bias) {
  const PalTask& w = a.task[task];
  const T* s = static_cast<const T*>(w.weight[family]);
  const int64_t out = pal_outputs(a, family), in = pal_inputs(a, family);
  const int64_t K = transposed ? out : in, N = transposed ? in : out;
  const int64_t sk = transposed ? w.row_stride[family] : w.column_stride[family];
  const int64_t sn = transposed ? w.column_stride[family] : w.row_stride[family];
  for (int64_t p = 0; p < ceil_div(N, PW); p++) {
    E* panel = panels + p * panel_size<E>(K);
    pack_panel(K, imin(PW, N - p * PW), s + p * PW * sn, sk, sn, nullptr, panel);
  }
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

// C [rows][ldc] = A W over all panels of W.
template <class E>
static HFK_INLINE void pal_product(int64_t rows, int64_t N, int64_t K, const E* A, int64_t am, const E* W, float* C,
                                   int64_t ldc) {
  if constexpr (sizeof(E) == 4)
    gemm_store(rows, N, K, A, am, W, PW, panel_size<E>(K), C, ldc);
  else
    gemm_store(rows, N, K, A, am, W, C, ldc);
}

// hidden piece = source W^T + bias for the rows of a tile. Whole rows are stored one after the other, so that they stream.
template <class T, class E>
static void pal_project(const PalArgs& a, const PalWeight<E>& w, const PalTile& t, int family, int piece, const E* A,
                        int64_t am, float* C) {
  const int64_t ldc = round_up(a.Sp, PW);
  pal_product<E>(t.rows, a.S, pal_inputs(a, family), A, am, w.panels, C, ldc);
  pal_keep<T>(t.rows, a.S, a.Sp, C, ldc, w.bias, pal_hidden<T>(a, piece, t.row), a.Sp);
}

// Scores of rows [q0, q0 + rows) against all keys become probabilities, in place.
static __attribute__((noinline)) void pal_softmax(const PalArgs& a, int64_t b, int64_t h, int64_t q0, int64_t rows,
                                                  float scale, float* P, int64_t ldp, bool drop) {
  const Dropout d = make_dropout(a.seed, a.dropout);
  const V lowest = broadcast(-INFINITY);
  VI lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  for (int64_t m = 0; m < rows; m++) {
    float* p = P + m * ldp;
    const int64_t i = q0 + m, seen = a.causal ? i + 1 : a.T;
    const float* mask = a.mask ? a.mask + b * a.mask_b + i * a.mask_i : nullptr;
    V top = lowest;
    for (int64_t j = 0; j < ldp; j += VL) {
      V v = load(p + j) * scale;
      if (mask && j < a.T) v += load_first(mask + j, a.T - j);
      if (j + VL > seen) v = lane + int32_t(j) < int32_t(seen) ? v : lowest;
      store(p + j, v);
      top = vmax(top, v);
    }
    const float highest = hmax(top);
    if (highest == -INFINITY) {
      memset(p, 0, size_t(ldp) * 4);
      continue;
    }
    V sum = zero();
    for (int64_t j = 0; j < ldp; j += VL) {
      V e = vexp(load(p + j) - highest);
      store(p + j, e);
      sum += e;
    }
    const float inverse = 1.f / hsum(sum);
    const uint32_t hash = drop ? dropout_row(d, uint32_t((b * a.heads + h) * a.T + i)) : 0;
    for (int64_t j = 0; j < ldp; j += VL) {
      V v = load(p + j) * inverse;
      if (drop) v *= dropout_factor(d, hash, j);
      store(p + j, v);
    }
  }
}

// Attention of one head of one sequence: query, key and value pieces of hidden to the mixed piece.
template <class T, class E>
static void pal_attend(const PalArgs& a, int64_t b, int64_t h) {
  const int64_t K = a.S / a.heads, column = h * K, ldp = round_up(a.T, VL);
  const T *q = pal_hidden<T>(a, 1, b * a.T) + column, *k = pal_hidden<T>(a, 2, b * a.T) + column,
          *v = pal_hidden<T>(a, 3, b * a.T) + column;
  T* mixed = pal_hidden<T>(a, 4, b * a.T) + column;
  E* keys = scratch<E>(0, packed_size<E>(K, a.T));
  E* values = scratch<E>(1, packed_size<E>(a.T, K));
  pack<E>(K, a.T, k, 1, a.Sp, keys, 0, ceil_div(a.T, PW));
  pack<E>(a.T, K, v, a.Sp, 1, values, 0, ceil_div(K, PW));
  float* P = scratch<float>(2, kPalQueryRows * ldp);
  const int64_t ldc = round_up(K, VL);
  float* C = scratch<float>(3, kPalQueryRows * ldc);
  for (int64_t q0 = 0; q0 < a.T; q0 += kPalQueryRows) {
    const int64_t rows = imin(kPalQueryRows, a.T - q0), seen = a.causal ? q0 + rows : a.T;
    int64_t am, pm;
    const E* Q = rows_for_product<E>(rows, K, q + q0 * a.Sp, a.Sp, nullptr, scratch<E>(4, round_up(rows, 16) * padded_k<E>(K)),
                                     &am);
    gemm_store(rows, seen, K, Q, am, keys, P, ldp);
    pal_softmax(a, b, h, q0, rows, 1.f / std::sqrt(float(K)), P, ldp, a.dropout > 0);
    const E* R = rows_for_product<E>(rows, a.T, P, ldp, nullptr,
                                     scratch<E>(5, round_up(rows, 16) * padded_k<E>(a.T)), &pm);
    gemm_store(rows, K, a.T, R, pm, values, C, ldc);
    pal_keep<T>(rows, K, K, C, ldc, nullptr, mixed + q0 * a.Sp, a.Sp);
  }
}

// Decoder and activation of a tile, a few rows at a time: their results stay in cache until they are stored.
template <class T, class E>
static void pal_decode(const PalArgs& a, const PalWeight<E>& w, const PalTile& t, const E* A, int64_t am) {
  constexpr int64_t step = sizeof(E) == 4 ? 24 : 32;
  const int64_t ldc = round_up(a.D, PW);
  const float* bias = w.bias;
  float* C = scratch<float>(3, step * ldc);
  for (int64_t m0 = 0; m0 < t.rows; m0 += step) {
    const int64_t rows = imin(step, t.rows - m0);
    pal_product<E>(rows, a.D, a.S, A + m0 * am, am, w.panels, C, ldc);
    T* out = static_cast<T*>(a.out) + (t.row + m0) * a.D;
    if (a.pre) {
      T* pre = static_cast<T*>(a.pre) + (t.row + m0) * a.D;
      pal_keep<T>(rows, a.D, a.D, C, ldc, bias, pre, a.D);
    }
    for (int64_t m = 0; m < rows; m++)
      for (int64_t n = 0; n < a.D; n += VL) {
        V v = load(C + m * ldc + n);
        if (bias) v += load(bias + n);
        store_first(out + m * a.D + n, activate(a.activation, v), a.D - n);
      }
  }
}

// A sequence without a task: zeros, also in what the backward is given.
template <class T>
static void pal_clear(const PalArgs& a, int64_t b) {
  memset(static_cast<T*>(a.out) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
  for (int piece = 0; piece < a.pieces; piece++)
    memset(pal_hidden<T>(a, piece, b * a.T), 0, a.T * a.Sp * sizeof(T));
  if (a.pre) memset(static_cast<T*>(a.pre) + b * a.T * a.D, 0, a.T * a.D * sizeof(T));
}

template <class T>
static void pal_forward_t(const PalArgs& a) {
  typedef Elem<T> E;
  auto rows_of = [&](int piece, const PalTile& t, int64_t* am) {
    return rows_for_product<E>(t.rows, a.S, pal_hidden<T>(a, piece, t.row), a.Sp, nullptr,
                               scratch<E>(1, kPalTileRows * padded_k<E>(a.S)), am);
  };
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
        const E* X = rows_for_product<E>(t->rows, a.D, static_cast<const T*>(a.x) + t->row * a.x_stride, a.x_stride, nullptr,
                                         scratch<E>(0, kPalTileRows * padded_k<E>(a.D)), &am);
        pal_project<T>(a, encoder, *t, kPalEncoder, 0, X, am, C);
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
  parallel(a.B * a.heads, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++)
      if (a.sequence_task[i / a.heads] >= 0) pal_attend<T, E>(a, i / a.heads, i % a.heads);
  });
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
  for (int64_t b = 0; b < a.B; b++)
    if (a.sequence_task[b] < 0) pal_clear<T>(a, b);
}

static void pal_forward(const PalArgs& a) {
  a.type == DType::f32 ? pal_forward_t<float>(a) : pal_forward_t<bf16>(a);
}
