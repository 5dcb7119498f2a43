// pal_attention backward, the weights: gradient[out][in] = the sum over a task's tokens of coefficient[out] source[in].
// Cut into squares of the gradient, each one sum over the tokens in order.

constexpr int64_t kPalWeightSide = 256;
constexpr int64_t kPalWeightTokens = 256;  // that one product sums

// The tokens of every task, in order: token[start[t] .. start[t + 1]).
struct PalTokens {
  Shared<int32_t> token;
  Shared<int64_t> start;
  explicit PalTokens(const PalArgs& a) : token(a.B * a.T), start(a.tasks + 1) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.tasks; t++) {
      start[t] = n;
      for (int64_t b = 0; b < a.B; b++)
        for (int64_t i = 0; a.sequence_task[b] == t && i < a.T; i++) token[n++] = int32_t(b * a.T + i);
    }
    start[a.tasks] = n;
  }
};

// Columns [0, columns) of the given rows as floats, kPalWeightSide apart, 0 up to a full vector.
template <class X>
static void pal_float_rows(int64_t rows, int64_t columns, const X* s, int64_t stride, const int32_t* index, float* d) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n += VL)
      store(d + m * kPalWeightSide + n, load_first(s + index[m] * stride + n, columns - n));
}

#if defined(__AVX512BF16__)
// 32 elements along k of one row of A.
static HFK_INLINE void pal_store_run(V low, V high, bf16* A, int64_t am, int64_t row, int64_t k) {
  _mm512_storeu_si512(A + row * am + k, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// The transpose of columns [0, columns) of the given rows, as rows of a product: [columns][padded_k(rows)].
template <class E, class X>
static void pal_transposed_rows(int64_t rows, int64_t columns, const X* s, int64_t stride, const int32_t* index, E* A) {
  const int64_t Kp = padded_k<E>(rows);
  alignas(64) float block[32 * 16], turned[16 * 32];
  for (int64_t k = 0; k < Kp; k += 32)
    for (int64_t n = 0; n < columns; n += 16) {
      for (int64_t i = 0; i < 32; i++)
        store(block + i * 16, k + i < rows ? load_first(s + index[k + i] * stride + n, columns - n) : zero());
      for (int half = 0; half < 2; half++) transpose16(block + half * 256, 64, turned + half * 16, 128, 16);
      for (int64_t j = 0; j < imin(16, columns - n); j++)
        pal_store_run(load(turned + j * 32), load(turned + j * 32 + 16), A, Kp, n + j, k);
    }
}
#endif

// sums [rows][kPalWeightSide] = coefficients^T source over the given tokens; rows and columns at most kPalWeightSide.
template <class E, class C, class X>
static void pal_weight_sums(const int32_t* token, int64_t tokens, int64_t rows, const C* coefficients, int64_t cs,
                            int64_t columns, const X* source, int64_t ss, float* sums) {
  constexpr int64_t side = kPalWeightSide;
  if (sizeof(E) == 4 || tokens == 0) memset(sums, 0, size_t(rows * side) * 4);
  if constexpr (sizeof(E) == 4) {
    constexpr int64_t step = 64;
    float *A = scratch<float>(0, step * side), *B = scratch<float>(1, step * side);
    for (int64_t k = 0; k < tokens; k += step) {
      const int64_t kc = imin(step, tokens - k);
      pal_float_rows(kc, rows, coefficients, cs, token + k, A);
      pal_float_rows(kc, columns, source, ss, token + k, B);
      gemm_add(rows, columns, kc, A, side, B, side, PW, sums, side);
    }
  } else {
#if defined(__AVX512BF16__)
    constexpr int64_t step = kPalWeightTokens;
    E *A = scratch<E>(0, side * step), *B = scratch<E>(1, packed_size<E>(step, side));
    X* copy = scratch<X>(2, step * side);
    float* more = scratch<float>(4, side * side);
    for (int64_t k = 0; k < tokens; k += step) {
      const int64_t kc = imin(step, tokens - k);
      pal_transposed_rows<E>(kc, rows, coefficients, cs, token + k, A);
      // Packing takes rows at one distance: those of several sequences are brought together first.
      const bool together = token[k + kc - 1] - token[k] == kc - 1;
      for (int64_t m = 0; m < kc && !together; m++)
        memcpy(static_cast<void*>(copy + m * side), source + token[k + m] * ss, size_t(columns) * sizeof(X));
      pack<E>(kc, columns, together ? source + token[k] * ss : copy, together ? ss : side, int64_t(1), B, 0,
              ceil_div(columns, PW));
      gemm_store(rows, columns, kc, A, padded_k<E>(kc), B, k == 0 ? sums : more, side);
      for (int64_t n = 0; k > 0 && n < rows * side; n += VL) store(sums + n, load(sums + n) + load(more + n));
    }
#endif
  }
}

// Column sums over the given tokens.
template <class X, class T>
static void pal_bias_sums(const int32_t* token, int64_t tokens, const X* source, int64_t stride, int64_t N, T* gradient) {
  float* sums = scratch<float>(1, round_up(N, VL));
  memset(sums, 0, size_t(round_up(N, VL)) * 4);
  for (int64_t i = 0; i < tokens; i++)
    for (int64_t n = 0; n < N; n += VL)
      store(sums + n, load(sums + n) + load_first(source + token[i] * stride + n, N - n));
  for (int64_t n = 0; n < N; n++) from_float(sums[n], gradient[n]);
}

template <class T, class E>
static void pal_backward_weights(const PalArgs& a, const PalGrads& g) {
  const PalTokens tokens(a);
  // Every weight has S rows or columns, and at most max(D, S) of the other.
  const int64_t squares = ceil_div(a.S, kPalWeightSide) * ceil_div(imax(a.D, a.S), kPalWeightSide);
  const int64_t items = kPalFamilies * squares;
  const float* coefficients[kPalMatrices] = {g.encoded.data, g.query.data, g.key.data, g.value.data, g.decoded.data,
                                             g.projected.data};
  parallel(a.tasks * items, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t task = i / items, square = i % items % squares;
      const int family = int(i % items / squares), matrix = family % kPalMatrices;
      const int64_t out = pal_outputs(a, matrix), in = pal_inputs(a, matrix), across = ceil_div(in, kPalWeightSide);
      const int64_t r0 = square / across * kPalWeightSide, c0 = square % across * kPalWeightSide;
      T* gradient = static_cast<T*>(a.task[task].grad[family]);
      const int32_t* token = tokens.token + tokens.start[task];
      const int64_t count = tokens.start[task + 1] - tokens.start[task];
      // The decoder's output has gradients of its own only behind an activation.
      const bool plain = matrix == kPalDecoder && a.pre == nullptr;
      const T* grad = static_cast<const T*>(a.grad);
      const int64_t cs = matrix == kPalDecoder ? a.D : a.Sp;
      if (gradient == nullptr || r0 >= out) continue;
      if (family >= kPalMatrices) {
        if (square > 0) continue;
        if (plain)
          pal_bias_sums(token, count, grad, a.grad_stride, out, gradient);
        else
          pal_bias_sums(token, count, coefficients[matrix], cs, out, gradient);
        continue;
      }
      const int piece = matrix == kPalOutput ? 4 : matrix != kPalDecoder ? 0 : a.task[task].weight[kPalOutput] ? 5 : 4;
      const T* source = matrix == kPalEncoder ? static_cast<const T*>(a.x) : pal_hidden<T>(a, piece, 0);
      const int64_t ss = matrix == kPalEncoder ? a.x_stride : a.Sp;
      const int64_t rows = imin(kPalWeightSide, out - r0), columns = imin(kPalWeightSide, in - c0);
      float* sums = scratch<float>(3, kPalWeightSide * kPalWeightSide);
      if (plain)
        pal_weight_sums<E>(token, count, rows, grad + r0, a.grad_stride, columns, source + c0, ss, sums);
      else
        pal_weight_sums<E>(token, count, rows, coefficients[matrix] + r0, cs, columns, source + c0, ss, sums);
      pal_keep<T>(rows, columns, columns, sums, kPalWeightSide, nullptr, gradient + r0 * in + c0, in);
    }
  });
}
