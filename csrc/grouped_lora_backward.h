// grouped_lora backward. First the rows: g = grad B and dx = s g A, tile by tile. Then the weights, cut over their
// columns so that every element is one sum over the task's rows in order: dA = (s g)^T x and dB^T = (s low)^T grad.

constexpr int64_t kLoraWeightColumns = 128;  // columns of a weight gradient that one work item sums
// Rows of x or grad that are summed at a time: rows of 768 floats share few sets of the first-level cache.
constexpr int64_t kLoraWeightRows = 48;

template <class T, class E>
static void lora_backward_rows(const LoraArgs& a, float* g, int64_t gs, float* tile_dscale, bool needs_dx) {
  const LoraPacks<T, E> packs(a, true, needs_dx);
  const Dropout d = make_dropout(a.seed, a.dropout);
  parallel(a.tiles, [&](int64_t i0, int64_t i1) {
    typename LoraPacks<T, E>::Own mine{-1, nullptr};
    for (int64_t i = i0; i < i1; i++) {
      const LoraTile& t = a.tile[i];
      const LoraTask& w = a.task[t.task];
      float* C = g + t.first * gs;
      int64_t xs, ls;
      const E* G = lora_rows<E, T>(a, t, a.grad, a.O, a.grad_stride, false, &xs);
      const E* weights = packs.of(t.task, mine);
      const LoraRows<T> next(a, i, a.grad, a.grad_stride);
      lora_down<E>(t.rows, a.O, w.R, G, xs, weights, C, gs, next.ahead());
      V sum = zero();
      for (int64_t m = 0; m < t.rows; m++) {
        const T* low = static_cast<const T*>(a.low) + int64_t(a.order[t.first + m]) * a.low_stride;
        for (int64_t r = 0; r < w.R; r += VL) {
          V v = load(C + m * gs + r);
          if (tile_dscale) sum = fma(v, load_first(low + r, w.R - r), sum);
          store_first(C + m * gs + r, v * w.scale, w.R - r);
        }
      }
      if (tile_dscale) tile_dscale[i] = hsum(sum);
      if (!needs_dx) continue;
      const E* L = lora_rank_rows<E>(t.rows, w.R, C, gs, &ls);
      lora_up<T, E>(a, t, a.Din, w.R, L, ls, weights + packs.up_offset(t.task), 1.f, a.add_to_dx ? a.dx : nullptr, a.Din,
                    a.dx, a.dropout > 0 ? &d : nullptr, next);
    }
  });
  if (!needs_dx || a.add_to_dx) return;
  for (int64_t i = 0; i < a.idle; i++) memset(static_cast<T*>(a.dx) + int64_t(a.idle_rows[i]) * a.Din, 0, a.Din * sizeof(T));
}

// Rows of `columns` floats: the source itself where it fits, else a copy (converted, gathered, dropped, padded).
template <class T>
static HFK_INLINE const float* lora_columns(const LoraArgs& a, const T* s, int64_t stride, const int32_t* index,
                                            int64_t rows, int64_t c0, int64_t columns, const Dropout* d, float* buffer,
                                            int64_t* out_stride) {
  if constexpr (sizeof(T) == 4)
    if (!d && columns % VL == 0 && index[rows - 1] - index[0] == rows - 1) {
      *out_stride = stride;
      return s + int64_t(index[0]) * stride + c0;
    }
  for (int64_t m = 0; m < rows; m++) {
    const T* from = s + int64_t(index[m]) * stride + c0;
    const uint32_t hash = d ? dropout_row(*d, uint32_t(index[m])) : 0;
    for (int64_t c = 0; c < columns; c += VL) {
      V v = load_first(from + c, columns - c);
      if (d) v *= dropout_factor(*d, hash, c0 + c);
      store(buffer + m * kLoraWeightColumns + c, v);
    }
  }
  *out_stride = kLoraWeightColumns;
  return buffer;
}

// sums[R][kLoraWeightColumns] = rank^T source over all rows of a task; rank rows are floats g (sorted), or low times s.
template <class T>
static void lora_weight_sums(const LoraArgs& a, const LoraTask& w, const float* g, int64_t gs, const void* source,
                             int64_t stride, int64_t c0, int64_t columns, const Dropout* d, float* sums) {
  memset(sums, 0, w.R * kLoraWeightColumns * 4);
  float* copy = scratch<float>(1, kLoraWeightRows * kLoraWeightColumns);
  float* scaled = scratch<float>(2, kLoraWeightRows * gs);
  const int32_t* index = a.order + w.start;
  for (int64_t m0 = 0, rows; m0 < w.count; m0 += rows) {
    rows = imin(kLoraWeightRows, w.count - m0);
    // Stop at the end of a long run of neighbours: those are read where they are.
    int64_t run = 1;
    while (run < rows && index[m0 + run] == index[m0] + run) run++;
    if (run >= 16) rows = run;
    int64_t ss;
    const float* S = lora_columns(a, static_cast<const T*>(source), stride, index + m0, rows, c0, columns, d, copy, &ss);
    const float* R = g + (w.start + m0) * gs;
    if (g == nullptr) {
      for (int64_t m = 0; m < rows; m++) {
        const T* low = static_cast<const T*>(a.low) + int64_t(index[m0 + m]) * a.low_stride;
        for (int64_t r = 0; r < w.R; r += VL) store(scaled + m * gs + r, load_first(low + r, w.R - r) * w.scale);
      }
      R = scaled;
    }
    gemm_add(w.R, columns, rows, R, gs, S, ss, PW, sums, kLoraWeightColumns);
  }
}

template <class T>
static void lora_backward_weights(const LoraArgs& a, const float* g, int64_t gs) {
  const int64_t in = ceil_div(a.Din, kLoraWeightColumns), out = ceil_div(a.O, kLoraWeightColumns), items = in + out;
  const Dropout d = make_dropout(a.seed, a.dropout);
  parallel(a.tasks * items, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const LoraTask& w = a.task[i / items];
      const int64_t item = i % items;
      const bool is_a = item < in;
      const int64_t c0 = (is_a ? item : item - in) * kLoraWeightColumns;
      const int64_t columns = imin(kLoraWeightColumns, (is_a ? a.Din : a.O) - c0);
      if ((is_a ? w.da : w.db) == nullptr) continue;
      float* sums = scratch<float>(4, w.R * kLoraWeightColumns);
      if (is_a) {
        lora_weight_sums<T>(a, w, g, gs, a.x, a.x_stride, c0, columns, a.dropout > 0 ? &d : nullptr, sums);
        for (int64_t r = 0; r < w.R; r++)
          for (int64_t c = 0; c < columns; c += VL)
            store_first(static_cast<T*>(w.da) + r * a.Din + c0 + c, load(sums + r * kLoraWeightColumns + c), columns - c);
      } else {
        lora_weight_sums<T>(a, w, nullptr, gs, a.grad, a.grad_stride, c0, columns, nullptr, sums);
        for (int64_t c = 0; c < columns; c++)
          for (int64_t r = 0; r < w.R; r++)
            from_float(sums[r * kLoraWeightColumns + c], static_cast<T*>(w.db)[(c0 + c) * w.R + r]);
      }
    }
  });
}

template <class T, class E>
static void lora_backward_t(const LoraArgs& a) {
  const int64_t gs = round_up(a.max_rank, kRankPad);
  bool needs_da = false, needs_db = false;
  for (int64_t t = 0; t < a.tasks; t++) {
    needs_da |= a.task[t].da != nullptr;
    needs_db |= a.task[t].db != nullptr;
  }
  const bool needs_rows = a.dx != nullptr || needs_da || a.dscale != nullptr;
  Shared<float> g(needs_rows ? a.active * gs : 0), parts(a.dscale ? a.tiles : 0);
  if (needs_rows) lora_backward_rows<T, E>(a, g, gs, parts, a.dx != nullptr);
  if (a.dscale) {
    for (int64_t t = 0; t < a.tasks; t++) a.dscale[t] = 0.f;
    for (int64_t i = 0; i < a.tiles; i++) a.dscale[a.tile[i].task] += parts[i];
  }
  if (needs_da || needs_db) lora_backward_weights<T>(a, g, gs);
}

static void lora_backward(const LoraArgs& a) {
  a.type == DType::f32 ? lora_backward_t<float, float>(a) : lora_backward_t<bf16, Elem<bf16>>(a);
}
