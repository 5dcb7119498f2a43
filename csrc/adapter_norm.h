// parallel_adapter_norm, forward.
//
// Rows are cut into blocks of one task. A block runs down product, activation, up product and the row pass (residual,
// norm) while its rows are in cache; x, residual and h are read once and out is written once.

// Weights of one task as the products want them.
template <class E>
struct AdapterPack {
  E* down;           // panels of W_d^T, or null on the dot path
  float* down_rows;  // [8][Dh rounded up to VL]: W_d itself, for ranks up to 8 in float
  E* up;             // panels of W_u^T
  float* down_bias;  // [rank rounded up to VL], zero padded
  float* up_bias;    // [D rounded up]: scale * bias
  float* scale;      // [D rounded up], or PW copies of one number
  int64_t scale_step;
};

constexpr int64_t kDotRank = 8;

// Rows of a block: enough to use the weights in cache many times, few enough that the block stays there too.
template <class E>
static HFK_INLINE int64_t adapter_block_rows(int64_t max_rank) {
  if (sizeof(E) == 2) return max_rank <= 128 ? 64 : 96;
  return max_rank <= 32 ? 24 : max_rank <= 128 ? 48 : 96;
}

template <class T>
static HFK_INLINE void to_floats(const void* source, int64_t n, int64_t padded, float factor, float* d) {
  const T* s = static_cast<const T*>(source);
  for (int64_t i = 0; i < padded; i++) d[i] = s && i < n ? to_float(s[i]) * factor : 0.f;
}

// out[m][j] = sum_k A[m][k] W[j][k] for j < 8, vectorised along k: no lane is idle as in a panel of 8 columns.
template <int MR>
static HFK_INLINE void dot8(int64_t K, const float* A, int64_t am, const float* W, int64_t ldw, float* out) {
  V c[MR][8];
#pragma GCC unroll 3
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) c[i][j] = zero();
  auto step = [&](int64_t k, int64_t left) __attribute__((always_inline)) {
    V a[MR];
#pragma GCC unroll 3
    for (int i = 0; i < MR; i++) a[i] = left >= VL ? load(A + i * am + k) : load_first(A + i * am + k, left);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      V w = load(W + j * ldw + k);
#pragma GCC unroll 3
      for (int i = 0; i < MR; i++) c[i][j] = fma(a[i], w, c[i][j]);
    }
  };
  int64_t k = 0;
  for (; k + VL <= K; k += VL) step(k, VL);
  if (k < K) step(k, K - k);
#pragma GCC unroll 3
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) out[i * 8 + j] = hsum(c[i][j]);
}
static __attribute__((noinline)) void dot8_rows(int64_t M, int64_t K, const float* A, int64_t am, const float* W,
                                                int64_t ldw, float* out, int64_t ldo) {
  constexpr int MR = VL == 16 ? 3 : 1;
  float sums[MR * 8];
  // A vector that is wider than 8 is filled up: whatever would stand there takes part in what follows, slowly if it is
  // subnormal.
  auto keep = [&](int64_t m, const float* s) __attribute__((always_inline)) {
    memcpy(out + m * ldo, s, 32);
    for (int64_t j = 8; j < VL; j++) out[m * ldo + j] = 0.f;
  };
  int64_t m = 0;
  for (; m + MR <= M; m += MR) {
    dot8<MR>(K, A + m * am, am, W, ldw, sums);
    for (int i = 0; i < MR; i++) keep(m + i, sums + i * 8);
  }
  for (; m < M; m++) {
    dot8<1>(K, A + m * am, am, W, ldw, sums);
    keep(m, sums);
  }
}

// Shares out a loop over the panels of several operands: item i of [0, total) is panel (which operand, which panel).
template <class F>
static HFK_INLINE void for_panels(int64_t operands, const int64_t* start, F&& f) {
  parallel(start[operands], [&](int64_t i0, int64_t i1) {
    int64_t o = 0;
    for (int64_t i = i0; i < i1; i++) {
      while (i >= start[o + 1]) o++;
      f(o, i - start[o]);
    }
  });
}

template <class T, class E>
struct AdapterWeights {
  Shared<AdapterPack<E>> packs;
  Shared<E> panels;
  Shared<float> floats;

  static int64_t panel_elements(const AdapterTask& t, int64_t D, int64_t Dh) {
    return packed_size<E>(Dh, t.rank) + packed_size<E>(t.rank, D);
  }
  static int64_t float_elements(const AdapterTask& t, int64_t D, int64_t Dh) {
    return round_up(t.rank, VL) + 2 * round_up(D, VL) + PW + 8 * round_up(Dh, VL);
  }
  static int64_t total(const AdapterNormArgs& a, int64_t (*size)(const AdapterTask&, int64_t, int64_t)) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.num_tasks; t++)
      if (a.plan->tasks[t].count) n += size(a.tasks[t], a.D, a.Dh);
    return n;
  }

  explicit AdapterWeights(const AdapterNormArgs& a)
      : packs(a.num_tasks), panels(total(a, panel_elements)), floats(total(a, float_elements)) {
    Shared<int64_t> start(a.num_tasks + 1);
    start[0] = 0;
    E* e = panels;
    float* f = floats;
    for (int64_t t = 0; t < a.num_tasks; t++) {
      const AdapterTask& task = a.tasks[t];
      const bool here = a.plan->tasks[t].count > 0;
      start[t + 1] = start[t] + (here ? ceil_div(task.rank, PW) + ceil_div(a.D, PW) : 0);
      if (!here) continue;
      AdapterPack<E>& p = packs[t];
      const bool dot = sizeof(E) == 4 && task.rank <= kDotRank;
      const int64_t Dp = round_up(a.D, VL);
      p.down = e, e += packed_size<E>(a.Dh, task.rank);
      p.up = e, e += packed_size<E>(task.rank, a.D);
      p.down_bias = f, f += round_up(task.rank, VL);
      p.up_bias = f, f += Dp;
      p.scale = f, f += imax(Dp, PW);
      p.down_rows = dot ? f : nullptr;
      if (dot) f += 8 * round_up(a.Dh, VL);
      to_floats<T>(task.down_bias, task.rank, round_up(task.rank, VL), 1.f, p.down_bias);
      to_floats<T>(task.up_bias, a.D, Dp, 1.f, p.up_bias);
      const bool vector = task.scale && task.scale_size > 1;
      p.scale_step = vector ? 1 : 0;
      if (vector) {
        to_floats<T>(task.scale, a.D, Dp, 1.f, p.scale);
      } else {
        const float s = task.scale ? to_float(*static_cast<const T*>(task.scale)) : task.scale_value;
        for (int64_t i = 0; i < PW; i++) p.scale[i] = s;
      }
      for (int64_t i = 0; i < a.D; i++) p.up_bias[i] *= p.scale[i * p.scale_step];
      if (dot)
        for (int64_t j = 0; j < 8; j++)
          to_floats<T>(j < task.rank ? static_cast<const T*>(task.down) + j * a.Dh : nullptr, a.Dh, round_up(a.Dh, VL),
                       1.f, p.down_rows + j * round_up(a.Dh, VL));
    }
    for_panels(a.num_tasks, start, [&](int64_t t, int64_t panel) {
      const AdapterTask& task = a.tasks[t];
      const int64_t down_panels = ceil_div(task.rank, PW);
      if (panel >= down_panels)
        pack<E>(task.rank, a.D, static_cast<const T*>(task.up), 1, task.rank, packs[t].up, panel - down_panels,
                panel - down_panels + 1);
      else if (!packs[t].down_rows)
        pack<E>(a.Dh, task.rank, static_cast<const T*>(task.down), 1, a.Dh, packs[t].down, panel, panel + 1);
    });
  }
};

// t = drop(act(products + bias)) for one block: reads C [rows][ldc], writes [rows][Kp] (may be C itself), saves pre.
template <class T, class E>
static __attribute__((noinline)) void adapter_activate(const AdapterNormArgs& a, const RowBlock& b, int64_t rank,
                                                       const float* bias, const float* C, int64_t ldc, E* t, int64_t Kp) {
  const Dropout drop = make_dropout(a.seed, a.dropout);
  for (int64_t m = 0; m < b.count; m++) {
    const int64_t row = b.index ? b.index[m] : b.first + m;
    T* pre = a.pre ? static_cast<T*>(a.pre) + row * a.max_rank : nullptr;
    const uint32_t hash = a.has_dropout ? dropout_row(drop, uint32_t(row)) : 0;
    int64_t n = 0;
    for (; n < rank; n += VL) {
      V v = load(C + m * ldc + n) + load(bias + n);
      if (pre) store_first(pre + n, v, rank - n);
      v = activate(a.activation, v);
      if (a.has_dropout) v *= dropout_factor(drop, hash, n);
      store_first(t + m * Kp + n, v, Kp - n);
    }
    for (; n < Kp; n++) from_float(0.f, t[m * Kp + n]);
  }
}

template <bool B>
struct Flag {
  static constexpr bool value = B;
};
// body(n, full) over [0, D) in vectors; the last one may be partial (full = false).
template <class F>
static HFK_INLINE void for_vectors(int64_t D, F&& body) {
  int64_t n = 0;
  for (; n + VL <= D; n += VL) body(n, Flag<true>());
  if (n < D) body(n, Flag<false>());
}
template <bool full, class T>
static HFK_INLINE V get(const T* p, int64_t left) {
  return full ? load(p) : load_first(p, left);
}
template <bool full, class T>
static HFK_INLINE void put(T* p, V v, int64_t left) {
  full ? store(p, v) : store_first(p, v, left);
}

// Asks for a row that the next block reads: the hardware prefetcher does not see that far.
template <class T>
static HFK_INLINE void fetch_row(const T* rows, int64_t row, int64_t D) {
  for (int64_t n = 0; n < D; n += 64 / int64_t(sizeof(T))) prefetch_l2(rows + row * D + n);
}
static HFK_INLINE bool next_block_follows(const RowBlock& b, int64_t rows) {
  return b.index == nullptr && b.first + 2 * b.count <= rows;
}

struct NormWeights {
  const float *weight, *bias;  // [D rounded up to VL]
};

// z = x [+ residual] [+ scale * C + up_bias], then the norm. C: [rows][Dp], overwritten by z.
template <class T, bool delta>
static __attribute__((noinline)) void adapter_rows(const AdapterNormArgs& a, const RowBlock& b, const float* scale,
                                                   int64_t scale_step, const float* up_bias, NormWeights w, float* C,
                                                   int64_t Dp) {
  const int64_t D = a.D;
  const bool fetch = next_block_follows(b, a.rows);
  const int64_t ahead = fetch ? b.count * D : 0;
  for (int64_t m = 0; m < b.count; m++) {
    const int64_t row = b.index ? b.index[m] : b.first + m;
    const T* x = static_cast<const T*>(a.x) + row * D;
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * D : nullptr;
    T* z_out = a.z ? static_cast<T*>(a.z) + row * D : nullptr;
    T* out = static_cast<T*>(a.out) + row * D;
    float* z = C + m * Dp;
    if (fetch && a.h != a.x) fetch_row(static_cast<const T*>(a.h), row + b.count, a.Dh);
    V s0 = zero(), q0 = zero();
    for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      V v = get<full>(x + n, D - n);
      prefetch_l2(x + n + ahead);
      if (residual) {
        v += get<full>(residual + n, D - n);
        prefetch_l2(residual + n + ahead);
      }
      if (delta) v += fma(load(z + n), load(scale + n * scale_step), load(up_bias + n));
      if (a.norm == Norm::none) {
        put<full>(out + n, v, D - n);
        return;
      }
      store(z + n, v);
      if (z_out) put<full>(z_out + n, v, D - n);
      s0 += v;
      q0 = fma(v, v, q0);
    });
    if (a.norm == Norm::none) continue;
    float mean = 0.f, variance;
    if (a.norm == Norm::layer) {
      mean = hsum(s0) / float(D);
      V d0 = zero();
      // A second pass over the row: E[z^2] - mean^2 would cancel.
      for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
        constexpr bool full = decltype(f)::value;
        V d = load(z + n) - mean;
        if (!full) {
          float lanes[VL] = {};
          for (int64_t i = 0; i < D - n; i++) lanes[i] = 1.f;
          d *= load(lanes);
        }
        d0 = fma(d, d, d0);
      });
      variance = hsum(d0) / float(D);
    } else {
      variance = hsum(q0) / float(D);
    }
    const float rstd = 1.f / __builtin_sqrtf(variance + a.eps);
    if (a.rstd) {
      a.rstd[row] = rstd;
      if (a.norm == Norm::layer) a.mean[row] = mean;
    }
    for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      put<full>(out + n, fma((load(z + n) - mean) * rstd, load(w.weight + n), load(w.bias + n)), D - n);
    });
  }
}

// Norm weight (1 when absent) plus offset, and bias (0 when absent), as floats.
template <class T>
static HFK_INLINE NormWeights norm_floats(const AdapterNormArgs& a, float* buffer) {
  const int64_t Dp = round_up(a.D, VL);
  to_floats<T>(a.norm_weight, a.D, Dp, 1.f, buffer);
  for (int64_t i = 0; i < a.D; i++) buffer[i] = a.norm_weight ? buffer[i] + a.norm_offset : 1.f;
  to_floats<T>(a.norm_bias, a.D, Dp, 1.f, buffer + Dp);
  return {buffer, buffer + Dp};
}

template <class T>
static void adapter_norm_forward_t(const AdapterNormArgs& a) {
  typedef Elem<T> E;
  Shared<float> norm_memory(2 * round_up(a.D, VL));
  const NormWeights norm = norm_floats<T>(a, norm_memory);
  const int64_t D = a.D, Dp = round_up(D, VL), MB = adapter_block_rows<E>(a.max_rank);
  AdapterWeights<T, E> weights(a);
  const int64_t rp = round_up(imax(a.max_rank, kDotRank), PW);
  parallel(a.plan->count, [&](int64_t b0, int64_t b1) {
    float* C = scratch<float>(0, MB * imax(Dp, 1));
    float* hidden = scratch<float>(1, MB * rp);
    E* t = scratch<E>(2, round_up(MB, 32) * padded_k<E>(rp));
    E* rows = scratch<E>(3, round_up(MB, 32) * padded_k<E>(a.Dh));
    for (int64_t i = b0; i < b1; i++) {
      const RowBlock& b = a.plan->blocks[i];
      if (b.task < 0) {
        adapter_rows<T, false>(a, b, nullptr, 0, nullptr, norm, C, Dp);
        continue;
      }
      const AdapterPack<E>& p = weights.packs[b.task];
      const int64_t rank = a.tasks[b.task].rank;
      const int64_t ld = p.down_rows ? imax(round_up(rank, VL), kDotRank) : round_up(rank, VL);
      const T* h = static_cast<const T*>(a.h) + (b.index ? 0 : b.first * a.Dh);
      const int64_t tm = padded_k<E>(rank);
      int64_t am;
      const E* A = rows_for_product<E>(b.count, a.Dh, h, a.Dh, b.index, rows, &am);
      bool dot = false;
      if constexpr (sizeof(E) == 4) {
        dot = p.down_rows != nullptr;
        if (dot) dot8_rows(b.count, a.Dh, A, am, p.down_rows, round_up(a.Dh, VL), hidden, ld);
      }
      if (!dot) gemm_store(b.count, rank, a.Dh, A, am, p.down, hidden, ld);
      adapter_activate<T>(a, b, rank, p.down_bias, hidden, ld, t, tm);
      gemm_store(b.count, D, rank, t, tm, p.up, C, Dp);
      adapter_rows<T, true>(a, b, p.scale, p.scale_step, p.up_bias, norm, C, Dp);
    }
  });
}
static void adapter_norm_forward(const AdapterNormArgs& a) {
  a.type == DType::f32 ? adapter_norm_forward_t<float>(a) : adapter_norm_forward_t<bf16>(a);
}
static void adapter_norm_block_rows(const AdapterBlockRows& a) {
  *a.rows = a.type == DType::f32 ? adapter_block_rows<float>(a.max_rank) : adapter_block_rows<Elem<bf16>>(a.max_rank);
}
