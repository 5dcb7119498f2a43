// float32 product on AMX tiles, which multiply bfloat16 only. Every float32 is the exact sum of three bfloat16 numbers,
// high + middle + low (8 bits of significand each); of the nine products of two such sums the six largest are taken, and
// what is left out is below 2^-24 of the result: the accuracy of a float32 product at six bfloat16 products a piece.
// The five small products have accumulators of their own, so that they are not rounded away one by one.
// Infinities become NaN (infinity minus infinity is the middle part), as does a NaN.

// One element of a split operand. Rows of A: [3][am] bf16, am = padded_k. Panels of B: 32 columns at a time,
// [Kp / 32][3][16][32][2].
struct split {
  uint16_t part[3];
};
template <>
struct ElemOf<split> {
  typedef split type;
};
template <>
HFK_INLINE int64_t padded_k<split>(int64_t K) {
  return round_up(K, 32);
}

static HFK_INLINE void split_parts(float x, bf16* part) {
  for (int p = 0; p < 3; p++) {
    from_float(x, part[p]);
    x -= to_float(part[p]);
  }
}
static HFK_INLINE void split_store(bf16* d, int64_t plane, V v) {
  for (int p = 0; p < 3; p++) {
    store(d + p * plane, v);
    v -= load(d + p * plane);
  }
}
static HFK_INLINE bf16* split_row(split* A, int64_t am, int64_t m) { return reinterpret_cast<bf16*>(A) + m * 3 * am; }

template <class T>
static void pack_panel(int64_t K, int64_t columns, const T* s, int64_t sk, int64_t sn, const float* scale, split* d) {
  const int64_t Kp = padded_k<split>(K);
  bf16* out = reinterpret_cast<bf16*>(d);
  for (int64_t k = 0; k < Kp; k++)
    for (int64_t n = 0; n < PW; n++) {
      bf16 part[3];
      split_parts(k < K && n < columns ? to_float(s[k * sk + n * sn]) * (scale ? scale[k] : 1.f) : 0.f, part);
      bf16* at = out + (n / 32) * Kp * 96 + (k / 32) * 3072 + ((k % 32) / 2) * 64 + (n % 32) * 2 + (k & 1);
      for (int p = 0; p < 3; p++) at[p * 1024] = part[p];
    }
}

constexpr int64_t kSplitK = 128;

// large + small of 16 rows, 32 (wide) or 16 columns, one piece of K.
template <bool wide>
static HFK_INLINE void split_piece(int64_t K, const bf16* A, int64_t am, const bf16* B, float* large, float* small) {
  _tile_zero(0);
  _tile_zero(2);
  if (wide) {
    _tile_zero(1);
    _tile_zero(3);
  }
  const int64_t stride = am * 6;
  for (int64_t k = 0; k < K; k += 32) {
    const bf16* b = B + (k / 32) * 3072;
    // Tiles 4 and 5: a part of A. Tiles 6 and 7: a part of B.
    _tile_loadd(4, A + k, stride);
    _tile_loadd(6, b, 128);
    _tile_dpbf16ps(0, 4, 6);
    if (wide) {
      _tile_loadd(7, b + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, A + am + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    if (wide) _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, A + 2 * am + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    if (wide) _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, b + 1024, 128);
    _tile_dpbf16ps(2, 4, 6);
    if (wide) {
      _tile_loadd(7, b + 1056, 128);
      _tile_dpbf16ps(3, 4, 7);
    }
    _tile_loadd(5, A + am + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    if (wide) _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(6, b + 2048, 128);
    _tile_dpbf16ps(2, 4, 6);
    if (wide) {
      _tile_loadd(7, b + 2080, 128);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, large, 128);
  _tile_stored(2, small, 128);
  if (wide) {
    _tile_stored(1, large + 16, 128);
    _tile_stored(3, small + 16, 128);
  }
}

static __attribute__((noinline)) void gemm_store(int64_t M, int64_t N, int64_t K, const split* A, int64_t am,
                                                 const split* B, float* C, int64_t ldc) {
  TileConfig config;
  alignas(64) float large[16 * 32], small[16 * 32];
  const int64_t Kp = padded_k<split>(K);
  for (int64_t n = 0; n < N; n += 32) {
    const bf16* b = reinterpret_cast<const bf16*>(B) + n * Kp * 3;
    const bool wide = N - n > 16;
    for (int64_t k = 0; k < Kp; k += kSplitK) {
      const int64_t kc = imin(kSplitK, Kp - k);
      for (int64_t m = 0; m < M; m += 16) {
        const bf16* a = reinterpret_cast<const bf16*>(A) + m * 3 * am + k;
        if (wide)
          split_piece<true>(kc, a, am, b + k * 96, large, small);
        else
          split_piece<false>(kc, a, am, b + k * 96, large, small);
        for (int64_t i = 0; i < imin(16, M - m); i++)
          for (int64_t j = 0; j < (wide ? 32 : 16); j += 16) {
            float* c = C + (m + i) * ldc + n + j;
            V v = load(small + i * 32 + j) + load(large + i * 32 + j);
            store(c, k > 0 ? load(c) + v : v);
          }
      }
    }
  }
}

// See rows_for_product in gemm.h: always a copy, in three parts.
template <class T>
static const split* split_rows(int64_t rows, int64_t K, const T* source, int64_t stride, const int32_t* index,
                               split* buffer, int64_t* out_stride) {
  const int64_t Kp = padded_k<split>(K);
  for (int64_t m = 0; m < rows; m++) {
    const T* s = source + (index ? int64_t(index[m]) : m) * stride;
    bf16* d = split_row(buffer, Kp, m);
    int64_t k = 0;
    for (; k + VL <= K; k += VL) split_store(d + k, Kp, load(s + k));
    for (; k < Kp; k += VL) split_store(d + k, Kp, k < K ? load_first(s + k, K - k) : zero());
  }
  *out_stride = Kp;
  return buffer;
}
