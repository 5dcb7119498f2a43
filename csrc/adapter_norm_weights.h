// parallel_adapter_norm, backward: the tape of bottleneck rows that the blocks leave, and the products of the weight
// gradients with it.

// d[j][k0 + m] = s[m][j]: a block's rows become columns of the tape.
template <class E>
static void tape_block(int64_t rows, int64_t rank, const float* s, int64_t ld, E* d, int64_t stride, int64_t k0,
                       int32_t* outside) {
#if defined(__AMX_TILE__)
  if constexpr (sizeof(E) == 6) return split_transposed(rows, rank, s, ld, d, stride, k0, outside);
#endif
  if constexpr (sizeof(E) != 6) {
    int64_t m = 0;
#if defined(__AVX512F__)
    alignas(64) float square[256];
    for (; m < rows; m += 16)
      for (int64_t j = 0; j < rank; j += 16) {
        transpose16(s + m * ld + j, ld * 4, square, 64, int(imin(16, rows - m)));
        for (int64_t q = 0; q < imin(16, rank - j); q++)
          store_first(d + (j + q) * stride + k0 + m, load(square + 16 * q), imin(16, rows - m));
      }
#else
    for (; m < rows; m++)
      for (int64_t j = 0; j < rank; j++) from_float(s[m * ld + j], d[j * stride + k0 + m]);
#endif
  }
}

// Panels of a weight gradient that one work item sums, rows that are summed at a time, and ranks whose tape stays in the
// second-level cache while those panels pass by.
constexpr int64_t kWeightPanels = 6, kWeightRows = 512, kWeightRanks = 64;
// Up to this rank rows are read where they are, a few at a time: packing them would cost as much as the product.
constexpr int64_t kDirectRank = 24, kDirectRows = 48;

// `panels` panels of columns from n0 of a weight gradient: C[panel][rank][PW] = sum over the task's rows of
// A[.][row] * B[row][.].
template <class T, class E>
static void adapter_weight_panels(const TaskRows& rows, int64_t rank, const E* A, int64_t stride, const T* B, int64_t D,
                                  int64_t n0, int64_t panels, float* C, int32_t* outside) {
  const int64_t ranks = round_up(rank, 16);
  T* gathered = scratch<T>(4, kWeightRows * PW);
  E* packed = scratch<E>(5, panels * panel_size<E>(kWeightRows));
  float* part = scratch<float>(6, kWeightRanks * PW);
  memset(C, 0, size_t(panels * ranks * PW) * 4);
  if constexpr (sizeof(E) == 4 && sizeof(T) == 4)
    if (rank <= kDirectRank && rows.index == nullptr && D % VL == 0) {
      for (int64_t k = 0; k < rows.count; k += kDirectRows)
        for (int64_t p = 0; p < panels; p++)
          gemm_add(rank, imin(PW, D - n0 - p * PW), imin(kDirectRows, rows.count - k), A + k, stride, 1,
                   B + (rows.start + k) * D + n0 + p * PW, D, PW, C + p * ranks * PW, PW);
      return;
    }
  for (int64_t k = 0; k < rows.count; k += kWeightRows) {
    const int64_t kc = imin(kWeightRows, rows.count - k);
    for (int64_t p = 0; p < panels; p++) {
      const int64_t columns = imin(PW, D - n0 - p * PW);
      const T* source = B + (rows.start + k) * D + n0 + p * PW;
      int64_t sk = D;
      if (rows.index) {
        for (int64_t i = 0; i < kc; i++)
          memcpy(gathered + i * PW, B + int64_t(rows.index[k + i]) * D + n0 + p * PW, size_t(columns) * sizeof(T));
        source = gathered, sk = PW;
      }
      pack<E>(kc, columns, source, sk, 1, packed + p * panel_size<E>(kc), 0, 1, nullptr, outside);
    }
    for (int64_t r = 0; r < rank; r += kWeightRanks) {
      const int64_t some = imin(kWeightRanks, rank - r);
      const E* tape = along_k(A + r * stride, k);
      for (int64_t p = 0; p < panels; p++) {
        float* c = C + (p * ranks + r) * PW;
        gemm_store(some, imin(PW, D - n0 - p * PW), kc, tape, stride, packed + p * panel_size<E>(kc), part, PW);
        for (int64_t i = 0; i < some * PW; i += VL) store(c + i, load(c + i) + load(part + i));
      }
    }
  }
}
