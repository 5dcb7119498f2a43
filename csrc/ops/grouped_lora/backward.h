// grouped_lora backward. First the rows: g = grad B and dx = s g A, tile by tile. Then the weights, cut over their
// columns so that every element is one sum over the task's rows in order: dA = (s g)^T x and dB^T = (s low)^T grad.
#pragma once
#include "forward.h"

namespace hfk {
namespace HFK_NAMESPACE {

constexpr int64_t kLoraWeightColumns = 128;  // columns of a weight gradient that one work item sums
// Rows of x or grad that are summed at a time: rows of 768 floats share few sets of the first-level cache.
constexpr int64_t kLoraWeightRows = 48;

// What all passes share: g, the gradient of the rank rows times the scale, rows sorted by task.
template <class T, class E>
struct LoraBackward {
  const LoraArgs& a;
  const bool needs_dx = a.dx != nullptr, needs_da, needs_db;
  const bool needs_rows = needs_dx || needs_da || a.dscale;
  const int64_t gs = round_up(a.max_rank, kRankPad);
  const Dropout drop = make_dropout(a.seed, a.dropout);
  const Dropout* dropped = a.dropout > 0 ? &drop : nullptr;
  Shared<float> g{needs_rows ? a.active * gs : 0}, tile_dscale{a.dscale ? a.tiles : 0};
  const LoraPacks<T, E> packs{a, true, needs_dx};

  static bool any(const LoraArgs& a, void* LoraTask::* gradient) {
    for (int64_t t = 0; t < a.tasks; t++)
      if (a.task[t].*gradient) return true;
    return false;
  }
  explicit LoraBackward(const LoraArgs& args)
      : a(args), needs_da(any(args, &LoraTask::da)), needs_db(any(args, &LoraTask::db)) {}
};

template <class T, class E>
static void lora_backward_tile(const LoraBackward<T, E>& run, int64_t i, typename LoraPacks<T, E>::Own& mine) {
  const LoraArgs& a = run.a;
  const LoraTile& t = a.tile[i];
  const LoraTask& w = a.task[t.task];
  const int64_t gs = run.gs;
  float* C = run.g + t.first * gs;
  int64_t xs, ls;
  const E* G = lora_rows<E, T>(a, t, a.grad, a.O, a.grad_stride, false, &xs);
  const E* weights = run.packs.of(t.task, -1, mine);
  const LoraRows<T> next(a, i, a.grad, a.grad_stride);
  lora_down<E>(t.rows, a.O, w.R, G, xs, run.packs.down_of(t.task, weights), C, gs, next.ahead());
  V sum = zero();
  for (int64_t m = 0; m < t.rows; m++) {
    const T* low = static_cast<const T*>(a.low) + int64_t(a.order[t.first + m]) * a.low_stride;
    for (int64_t r = 0; r < w.R; r += VL) {
      V v = load(C + m * gs + r);
      if (a.dscale) sum = fma(v, load_first(low + r, w.R - r), sum);
      store_first(C + m * gs + r, v * w.scale, w.R - r);
    }
  }
  if (a.dscale) run.tile_dscale[i] = hsum(sum);
  if (!run.needs_dx) return;
  const E* L = lora_rank_rows<E>(t.rows, w.R, C, gs, &ls);
  lora_up<T, E>(a, t, a.Din, w.R, L, ls, weights + run.packs.up_offset(t.task), 1.f, a.add_to_dx ? a.dx : nullptr, a.Din,
                a.dx, run.dropped, next);
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
// soon: rows of the task that are summed next, or null; the share `part` of `parts` of them is asked for.
template <class T>
static void lora_weight_sums(const LoraArgs& a, const LoraTask& w, const float* g, int64_t gs, const void* source,
                             int64_t stride, int64_t c0, int64_t columns, const Dropout* d, const T* soon,
                             int64_t soon_stride, int64_t part, int64_t parts, float* sums) {
  memset(sums, 0, w.R * kLoraWeightColumns * 4);
  float* copy = scratch<float>(6, kLoraWeightRows * kLoraWeightColumns);
  float* scaled = scratch<float>(7, kLoraWeightRows * gs);
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
    const int64_t first = rows * part / parts, asked = rows * (part + 1) / parts - first;
    const Ahead ahead = soon && asked ? ahead_of(soon + index[m0 + first] * soon_stride, asked * soon_stride) : Ahead{};
    gemm_add(w.R, columns, rows, R, gs, S, ss, PW, sums, kLoraWeightColumns, ahead);
  }
}

// Columns of the weight gradients of a task: items [0, dB's) and then dA's. dB comes first, while the rows of the task have
// just been read for g, and asks for the rows of x that dA reads.
template <class T, class E>
static int64_t lora_weight_items(const LoraBackward<T, E>& run) {
  return ceil_div(run.a.O, kLoraWeightColumns) + ceil_div(run.a.Din, kLoraWeightColumns);
}
template <class T, class E>
static void lora_weight_item(const LoraBackward<T, E>& run, const LoraTask& w, int64_t item) {
  const LoraArgs& a = run.a;
  const int64_t out = ceil_div(a.O, kLoraWeightColumns);
  const bool is_a = item >= out;
  const int64_t c0 = (is_a ? item - out : item) * kLoraWeightColumns;
  const int64_t columns = imin(kLoraWeightColumns, (is_a ? a.Din : a.O) - c0);
  if ((is_a ? w.da : w.db) == nullptr) return;
  float* sums = scratch<float>(4, w.R * kLoraWeightColumns);
  if (is_a) {
    lora_weight_sums<T>(a, w, run.g, run.gs, a.x, a.x_stride, c0, columns, run.dropped, nullptr, 0, 0, 1, sums);
    for (int64_t r = 0; r < w.R; r++)
      for (int64_t c = 0; c < columns; c += VL)
        store_first(static_cast<T*>(w.da) + r * a.Din + c0 + c, load(sums + r * kLoraWeightColumns + c), columns - c);
    return;
  }
  lora_weight_sums<T>(a, w, nullptr, run.gs, a.grad, a.grad_stride, c0, columns, nullptr,
                      w.da ? static_cast<const T*>(a.x) : nullptr, a.x_stride, item, out, sums);
  T* db = static_cast<T*>(w.db) + c0 * w.R;
#if defined(__AVX512F__)
  if (sizeof(T) == 4 && w.R % 16 == 0 && columns % 16 == 0) {
    for (int64_t c = 0; c < columns; c += 16)
      for (int64_t r = 0; r < w.R; r += 16)
        transpose16(sums + r * kLoraWeightColumns + c, kLoraWeightColumns * 4, db + c * w.R + r, w.R * 4, 16);
    return;
  }
#endif
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = 0; r < w.R; r++) from_float(sums[r * kLoraWeightColumns + c], db[c * w.R + r]);
}

// Whether tasks are so many and so even that each is left to one thread, rows and weights together.
static bool lora_by_task(const LoraArgs& a) {
  int64_t largest = 0;
  for (int64_t t = 0; t < a.tasks; t++) largest = imax(largest, a.task[t].count);
  return largest * 8 * num_threads() <= a.active * 5;
}

// Bits are the same either way: an element is one sum over the rows of its task, in their order.
template <class T, class E>
static void grouped_lora_backward_t(const LoraArgs& a) {
  const LoraBackward<T, E> run(a);
  const int64_t items = lora_weight_items(run);
  const bool needs_weights = run.needs_da || run.needs_db;
  if (run.needs_rows && needs_weights && lora_by_task(a)) {
    const int64_t shares = num_threads();
    parallel(shares, [&](int64_t s0, int64_t s1) {
      typename LoraPacks<T, E>::Own mine{-1, nullptr};
      for (int64_t i = 0; i < a.tiles; i++) {
        const int32_t task = a.tile[i].task;
        const int64_t share = a.task[task].start * shares / a.active;
        if (share < s0 || share >= s1) continue;
        lora_backward_tile(run, i, mine);
        const bool last = i + 1 == a.tiles || a.tile[i + 1].task != task;
        for (int64_t item = 0; last && item < items; item++) lora_weight_item(run, a.task[task], item);
      }
    });
    // Tasks without rows have zeros.
    for (int64_t t = 0; t < a.tasks; t++)
      for (int64_t item = 0; a.task[t].count == 0 && item < items; item++) lora_weight_item(run, a.task[t], item);
  } else {
    if (run.needs_rows)
      parallel(a.tiles, [&](int64_t i0, int64_t i1) {
        typename LoraPacks<T, E>::Own mine{-1, nullptr};
        for (int64_t i = i0; i < i1; i++) lora_backward_tile(run, i, mine);
      });
    if (needs_weights)
      parallel(a.tasks * items, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; i++) lora_weight_item(run, a.task[i / items], i % items);
      });
  }
  if (run.needs_dx && !a.add_to_dx)
    for (int64_t i = 0; i < a.idle; i++)
      memset(static_cast<T*>(a.dx) + int64_t(a.idle_rows[i]) * a.Din, 0, a.Din * sizeof(T));
  if (a.dscale) {
    for (int64_t t = 0; t < a.tasks; t++) a.dscale[t] = 0.f;
    for (int64_t i = 0; i < a.tiles; i++) a.dscale[a.tile[i].task] += run.tile_dscale[i];
  }
}

static void grouped_lora_backward(const LoraArgs& a) {
  a.type == DType::f32 ? grouped_lora_backward_t<float, float>(a) : grouped_lora_backward_t<bf16, Elem<bf16>>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
