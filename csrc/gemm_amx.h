// bf16 product on AMX tiles: 2 x 2 tiles of 16 x 16 float32 accumulators, K in steps of 32.
// A: round_up(M, 16) readable rows of padded_k(K) elements (rows at or beyond M may hold anything); k stride 1.

// Configures the tile registers for its lifetime and puts back what was there: other libraries use them too.
struct TileConfig {
  struct alignas(64) Layout {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  };
  Layout before;
  HFK_INLINE TileConfig() {
    _tile_storeconfig(&before);
    Layout mine = {};
    mine.palette = 1;
    for (int i = 0; i < 8; i++) {
      mine.column_bytes[i] = 64;
      mine.rows[i] = 16;
    }
    _tile_loadconfig(&mine);
  }
  HFK_INLINE ~TileConfig() {
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

// One group of 32 (two = true) or 16 rows times one panel of up to 64 columns.
template <bool two, class Epi>
static HFK_INLINE void tile_rows(int64_t m0, int64_t M, int64_t n0, int64_t N, int64_t K, const bf16* A, int64_t am,
                                 const bf16* B, Epi& epi) {
  alignas(64) float c[32 * 32];
  const bf16 *A0 = A + m0 * am, *A1 = A0 + 16 * am;
  for (int64_t half = 0; half < 2 && n0 + 32 * half < N; half++) {
    const bf16* b = B + half * 64;
    const bool wide = n0 + 32 * half + 16 < N;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < K; k += 32) {
      _tile_loadd(4, A0 + k, am * 2);
      _tile_loadd(6, b + k * PW, PW * 4);
      _tile_dpbf16ps(0, 4, 6);
      if (wide) {
        _tile_loadd(7, b + k * PW + 32, PW * 4);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (two) {
        _tile_loadd(5, A1 + k, am * 2);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
    if (two) {
      _tile_stored(2, c + 512, 128);
      _tile_stored(3, c + 528, 128);
    }
    const int64_t rows = imin(two ? 32 : 16, M - m0);
    for (int64_t i = 0; i < rows; i++) {
      epi(m0 + i, n0 + 32 * half, load(c + i * 32));
      if (wide) epi(m0 + i, n0 + 32 * half + 16, load(c + i * 32 + 16));
    }
  }
}

template <class Epi>
static HFK_INLINE void gemm(int64_t M, int64_t N, int64_t K, const bf16* A, int64_t am, int64_t, const bf16* B, Epi&& epi) {
  TileConfig config;
  const int64_t Kp = padded_k<bf16>(K);
  for (int64_t n0 = 0; n0 < N; n0 += PW, B += Kp * PW) {
    int64_t m = 0;
    for (; m + 16 < M; m += 32) tile_rows<true>(m, M, n0, N, Kp, A, am, B, epi);
    for (; m < M; m += 16) tile_rows<false>(m, M, n0, N, Kp, A, am, B, epi);
  }
}
