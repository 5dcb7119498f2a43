// frozen_linear: the packed product with bias and activation in the epilogue.

// The element type that panels of bfloat16 and int8 are multiplied in.
typedef Elem<bf16> LowElem;

static void linear_size(const LinearSizeArgs& a) {
  switch (a.weight_type) {
    case WeightType::f32: *a.bytes = packed_size<float>(a.K, a.N) * 4; break;
    case WeightType::split: *a.bytes = packed_size<SplitElem>(a.K, a.N) * int64_t(sizeof(SplitElem)); break;
    case WeightType::bf16: *a.bytes = packed_size<LowElem>(a.K, a.N) * int64_t(sizeof(LowElem)); break;
    case WeightType::int8: *a.bytes = packed_size<LowElem>(a.K, a.N); break;
  }
}

// int8 panels have the layout of LowElem panels, one byte an element.
template <class T>
static void pack_int8_panel(int64_t K, int64_t n0, int64_t N, const T* w, const LinearPackArgs& a, int8_t* d) {
  const int64_t Kp = padded_k<LowElem>(K);
  for (int64_t k = 0; k < Kp; k++)
    for (int64_t n = 0; n < PW; n++) {
      int8_t q = 0;
      if (k < K && n0 + n < N) {
        float s = a.k_scale ? a.k_scale[k] : a.scale[n0 + n];
        float r = s > 0.f ? std::nearbyint(to_float(w[k * a.sk + (n0 + n) * a.sn]) / s) : 0.f;
        q = int8_t(r < -127.f ? -127.f : r > 127.f ? 127.f : r);
      }
      const int64_t at = sizeof(LowElem) == 2 ? pair_index(Kp, k, n) : k * PW + n;
      d[at] = q;
    }
}

template <class T>
static void linear_pack_t(const LinearPackArgs& a) {
  const T* w = static_cast<const T*>(a.weight);
  parallel(ceil_div(a.N, PW), [&](int64_t p0, int64_t p1) {
    switch (a.weight_type) {
      case WeightType::f32: pack<float>(a.K, a.N, w, a.sk, a.sn, static_cast<float*>(a.packed), p0, p1); break;
      case WeightType::split:
        pack<SplitElem>(a.K, a.N, w, a.sk, a.sn, static_cast<SplitElem*>(a.packed), p0, p1);
        break;
      case WeightType::bf16:
        if constexpr (sizeof(LowElem) == 2) {
          pack<LowElem>(a.K, a.N, w, a.sk, a.sn, static_cast<LowElem*>(a.packed), p0, p1);
        } else {
          // Without a bf16 product the panels are floats that hold the rounded weights.
          float* d = static_cast<float*>(a.packed);
          pack<float>(a.K, a.N, w, a.sk, a.sn, d, p0, p1);
          for (int64_t i = p0 * panel_size<float>(a.K); i < p1 * panel_size<float>(a.K); i++) {
            bf16 r;
            from_float(d[i], r);
            d[i] = to_float(r);
          }
        }
        break;
      case WeightType::int8:
        for (int64_t p = p0; p < p1; p++)
          pack_int8_panel(a.K, p * PW, a.N, w, a,
                          static_cast<int8_t*>(a.packed) + p * panel_size<LowElem>(a.K));
        break;
    }
  });
}
static void linear_pack(const LinearPackArgs& a) {
  a.type == DType::f32 ? linear_pack_t<float>(a) : linear_pack_t<bf16>(a);
}

static HFK_INLINE void widen_int8(int64_t count, const int8_t* s, LowElem* d) {
  // Every int8 is exact in bf16, so rounding never happens here.
  for (int64_t i = 0; i < count; i++) from_float(float(s[i]), d[i]);
}

template <class T>
static __attribute__((noinline)) void linear_epilogue(const LinearArgs& a, int64_t m0, int64_t rows, int64_t n0,
                                                      const float* C) {
  T* out = static_cast<T*>(a.out) + m0 * a.N;
  const int64_t columns = imin(PW, a.N - n0);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n += VL) {
      V v = load(C + m * PW + n);
      if (a.scale) v *= load_first(a.scale + n0 + n, columns - n);
      if (a.bias) v += load_first(a.bias + n0 + n, columns - n);
      if (a.activation != kIdentity) v = activate(a.activation, v);
      store_first(out + m * a.N + n0 + n, v, columns - n);
    }
}

// Rows of results that are computed before they are stored: with a piece of the panel they fill the first-level cache.
// Split panels come from the third-level cache and are fetched ahead while a whole block of rows passes by.
template <class E>
constexpr int64_t kLinearRows = sizeof(E) == 6 ? 256 : 48;

// How many rows of x a work item takes: they stay in the second-level cache together with one panel of W. All threads
// get the same number of blocks.
template <class E>
static int64_t linear_block(int64_t M, int64_t K) {
  const int64_t fits = (int64_t(sizeof(E) == 6 ? 1200 : 640) << 10) / (imax(K, 1) * int64_t(sizeof(E)));
  const int64_t most = M < 384 * num_threads() ? 96 : sizeof(E) == 6 ? 256 : 192;
  const int64_t wanted = imax(48, imin(fits, most));
  const int64_t blocks = M <= wanted ? 1 : round_up(ceil_div(M, wanted), num_threads());
  return round_up(ceil_div(M, blocks), 16);
}

#if defined(__AMX_TILE__)
// Rows that cannot be split (gemm_split.h), again in plain float32: C holds `rows` rows of one panel of results.
template <class T>
static __attribute__((noinline)) void linear_repair(int64_t rows, int64_t K, const T* x, int64_t stride, const split* B,
                                                    int64_t columns, float* C) {
  float *panel = scratch<float>(1, K * PW), *row = scratch<float>(3, K);
  unsplit_panel(K, B, panel);
  for (int64_t m = 0; m < rows; m++) {
    __m512i most = _mm512_setzero_si512();
    for (int64_t k = 0; k < K; k += VL) {
      V v = load_first(x + m * stride + k, K - k);
      most = magnitude_max(most, v);
      store_first(row + k, v, K - k);
    }
    if (!in_split_range(_mm512_reduce_max_epu32(most))) gemm_store(1, columns, K, row, K, panel, C + m * PW, PW);
  }
}
#endif

template <class T, class E>
static void linear_t(const LinearArgs& a) {
  const int64_t MB = linear_block<E>(a.M, a.K), panels = ceil_div(a.N, PW), blocks = ceil_div(a.M, MB);
  // With few row blocks the panels are shared out as well.
  const int64_t cuts = blocks >= 2 * num_threads() ? 1 : imin(panels, ceil_div(4 * num_threads(), imax(blocks, 1)));
  parallel(blocks * cuts, [&](int64_t i0, int64_t i1) {
    float* C = scratch<float>(2, kLinearRows<E> * PW);
    for (int64_t i = i0; i < i1; i++) {
      const int64_t b = i / cuts, c = i % cuts, m0 = b * MB, rows = imin(MB, a.M - m0);
      const T* x = static_cast<const T*>(a.x) + m0 * a.x_stride;
      int64_t am;
      int32_t outside = 0;
      const E* A = rows_for_product<E>(rows, a.K, x, a.x_stride, nullptr,
                                       scratch<E>(0, round_up(rows, 16) * padded_k<E>(a.K)), &am, &outside);
      for (int64_t p = panels * c / cuts; p < panels * (c + 1) / cuts; p++) {
        const E* B;
        if (a.weight_type == WeightType::int8) {
          E* wide = scratch<E>(1, panel_size<E>(a.K));
          widen_int8(panel_size<E>(a.K), static_cast<const int8_t*>(a.packed) + p * panel_size<E>(a.K),
                     reinterpret_cast<LowElem*>(wide));
          B = wide;
        } else {
          B = static_cast<const E*>(a.packed) + p * panel_size<E>(a.K);
        }
        const int64_t columns = imin(PW, a.N - p * PW);
        for (int64_t m = 0; m < rows; m += kLinearRows<E>) {
          const int64_t some = imin(kLinearRows<E>, rows - m);
          gemm_store(some, columns, a.K, A + m * am, am, B, C, PW);
#if defined(__AMX_TILE__)
          if constexpr (sizeof(E) == 6)
            if (outside) linear_repair(some, a.K, x + m * a.x_stride, a.x_stride, B, columns, C);
#endif
          linear_epilogue<T>(a, m0 + m, some, p * PW, C);
        }
      }
    }
  });
}

static void linear_forward(const LinearArgs& a) {
  if (a.weight_type == WeightType::f32)
    a.type == DType::f32 ? linear_t<float, float>(a) : linear_t<bf16, float>(a);
  else if (a.weight_type == WeightType::split)
    a.type == DType::f32 ? linear_t<float, SplitElem>(a) : linear_t<bf16, SplitElem>(a);
  else
    a.type == DType::f32 ? linear_t<float, LowElem>(a) : linear_t<bf16, LowElem>(a);
}
