// grouped_lora forward: rows of one task at a time, down to the rank and up again while the rank rows are in cache.
#pragma once
#include "../../base/math.h"
#include "../../base/vectors.h"
#include "../../gemm/dot8.h"
#include "../../gemm/gemm.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rank rows are padded to full vectors, and to what the dot products write.
constexpr int64_t kRankPad = VL > kDotRank ? VL : kDotRank;

template <class E>
static HFK_INLINE bool lora_uses_dots(int64_t R) {
  return sizeof(E) == 4 && R <= kDotRank;
}
// Elements of the operand that takes rows of K values to the rank, and of the one that takes the rank to N values.
template <class E>
static HFK_INLINE int64_t lora_down_size(int64_t K, int64_t R) {
  return lora_uses_dots<E>(R) ? kDotRank * round_up(K, VL) : packed_size<E>(K, R);
}

// The rank as rows: [kDotRank][round_up(K, VL)], zero padded.
template <class T>
static void lora_pack_dots(int64_t K, int64_t R, const T* s, int64_t sk, int64_t sr, float* d) {
  const int64_t Kp = round_up(K, VL);
  for (int64_t r = 0; r < kDotRank; r++, d += Kp) {
    int64_t k = 0;
    if (r < R) {
      if (sk == 1)
        for (; k + VL <= K; k += VL) store(d + k, load(s + r * sr + k));
      for (; k < K; k++) d[k] = to_float(s[r * sr + k * sk]);
    }
    for (; k < Kp; k++) d[k] = 0.f;
  }
}
template <class E, class T>
static void lora_pack_down(int64_t K, int64_t R, const T* s, int64_t sk, int64_t sr, E* d) {
  if constexpr (sizeof(E) == 4)
    if (lora_uses_dots<E>(R)) return lora_pack_dots(K, R, s, sk, sr, d);
  pack<E>(K, R, s, sk, sr, d, 0, ceil_div(R, PW));
}

// Whether the products take so long that what they ask for along the way arrives while they run. (Those on bfloat16 tiles
// do not: there it is faster to ask between the rows that are stored.)
template <class E>
static HFK_INLINE bool lora_products_ask(int64_t R) {
  return sizeof(E) == 4 && R >= 32;
}

// The operand that takes rows to the rank; its rows are `stride` apart where it is used for dot products.
template <class E>
struct LoraDown {
  const E* weights;
  int64_t stride;
};

// C [rows][ldc] = X down to the rank; ldc is a multiple of VL.
template <class E>
static __attribute__((noinline)) void lora_down(int64_t rows, int64_t K, int64_t R, const E* X, int64_t xs, LoraDown<E> down,
                                                float* C, int64_t ldc, Ahead ahead) {
  const E* W = down.weights;
  if constexpr (sizeof(E) == 4) {
    if (lora_uses_dots<E>(R)) {
      dot8_rows(rows, K, X, xs, W, down.stride, C, ldc);
      return;
    }
  }
  if constexpr (sizeof(E) == 4)
    gemm_store(rows, R, K, X, xs, W, C, ldc, ahead);
  else
    gemm_store(rows, R, K, X, xs, W, C, ldc);
}

// The rows of a tile as the product wants them, dropped elements zeroed.
template <class E, class T>
static const E* lora_rows(const LoraArgs& a, const LoraTile& t, const void* source, int64_t K, int64_t stride, bool drop,
                          int64_t* out_stride) {
  const int32_t* index = a.order + t.first;
  const T* s = static_cast<const T*>(source);
  const int64_t Kp = padded_k<E>(K);
  E* buffer = scratch<E>(0, round_up(kLoraTileRows, 16) * Kp);
  if (!drop) {
    if (t.contiguous) return rows_for_product<E>(t.rows, K, s + index[0] * stride, stride, nullptr, buffer, out_stride);
    return rows_for_product<E>(t.rows, K, s, stride, index, buffer, out_stride);
  }
  const Dropout d = make_dropout(a.seed, a.dropout);
  for (int64_t m = 0; m < t.rows; m++) {
    const T* from = s + int64_t(index[m]) * stride;
    E* to = buffer + m * Kp;
    const uint32_t hash = dropout_row(d, uint32_t(index[m]));
    int64_t k = 0;
    for (; k < K; k += VL) store_first(to + k, load_first(from + k, K - k) * dropout_factor(d, hash, k), K - k);
    for (k = K; k < Kp; k++) from_float(0.f, to[k]);
  }
  *out_stride = Kp;
  return buffer;
}

// Rank rows C (float) as rows of the product up: C itself, or rounded to bf16 and padded.
template <class E>
static HFK_INLINE const E* lora_rank_rows(int64_t rows, int64_t R, const float* C, int64_t ldc, int64_t* stride) {
  if constexpr (sizeof(E) == 4) {
    *stride = ldc;
    return C;
  } else {
    const int64_t Rp = padded_k<E>(R);
    E* d = scratch<E>(3, round_up(rows, 16) * Rp);
    for (int64_t m = 0; m < rows; m++) {
      for (int64_t r = 0; r < R; r += VL) store_first(d + m * Rp + r, load(C + m * ldc + r), R - r);
      for (int64_t r = R; r < Rp; r++) d[m * Rp + r].bits = 0;
    }
    *stride = Rp;
    return d;
  }
}

// The rows that the next tile reads.
template <class T>
struct LoraRows {
  const T* source;
  int64_t stride;
  const int32_t* index;
  int64_t count;
  bool contiguous;
  LoraRows(const LoraArgs& a, int64_t tile, const void* rows, int64_t stride)
      : source(static_cast<const T*>(rows)), stride(stride) {
    const LoraTile& t = a.tile[imin(tile + 1, a.tiles - 1)];
    index = a.order + t.first, count = t.rows, contiguous = t.contiguous;
  }
  const T* row(int64_t m) const { return source + index[imin(m, count - 1)] * stride; }
  Ahead ahead() const { return contiguous ? ahead_of(row(0), count * stride) : Ahead{}; }
};

// Whole rows of results, one after the other so that base and out stream: out = base + scale * C, times the dropout
// factors of the row where there are any. The rows are m0 to m1 of the tile. fetch: no product has asked for base, out and
// the rows that the next tile reads, so they are asked for here, base and out a few rows before their turn.
template <bool fetch, class T>
static __attribute__((noinline)) void lora_store(const LoraTile& t, int64_t m0, int64_t m1, int64_t N, const float* C,
                                                 int64_t ldc, float scale, const int32_t* index, const T* base,
                                                 int64_t base_stride, T* out, const Dropout* d, const LoraRows<T>& next) {
  constexpr int64_t few = 4, line = 64 / int64_t(sizeof(T));
  for (int64_t m = m0; m < m1; m++) {
    const int64_t row = index[m], soon = index[imin(m + few, t.rows - 1)];
    T* o = out + row * N;
    const T* y = base ? base + row * base_stride : nullptr;
    const T *next_x = next.row(m), *next_y = base ? base + soon * base_stride : nullptr, *next_o = out + soon * N;
    const float* c = C + (m - m0) * ldc;
    const uint32_t hash = d ? dropout_row(*d, uint32_t(row)) : 0;
    auto ask = [&](int64_t n) __attribute__((always_inline)) {
      if (!fetch || n % line) return;
      prefetch_l2(next_x + n);
      prefetch_l2(next_o + n);
      if (y) prefetch_l2(next_y + n);
    };
    if (y && !d) {
      for_vectors(N, [&](int64_t n, auto f) __attribute__((always_inline)) {
        constexpr bool full = decltype(f)::value;
        ask(n);
        put<full>(o + n, fma(load(c + n), broadcast(scale), get<full>(y + n, N - n)), N - n);
      });
      continue;
    }
    for_vectors(N, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      ask(n);
      V v = load(c + n) * scale;
      if (d) v *= dropout_factor(*d, hash, n);
      if (y) v += get<full>(y + n, N - n);
      put<full>(o + n, v, N - n);
    });
  }
}

// The product up from the rank, a few rows at a time: their results stay in cache until they are stored.
template <class T, class E>
static void lora_up(const LoraArgs& a, const LoraTile& t, int64_t N, int64_t R, const E* L, int64_t ls, const E* W,
                    float scale, const void* base, int64_t base_stride, void* out, const Dropout* d,
                    const LoraRows<T>& next) {
  constexpr int64_t step = sizeof(E) == 2 ? 32 : 12;
  const int64_t ldc = round_up(N, PW);
  float* C = scratch<float>(2, step * ldc);
  const int32_t* index = a.order + t.first;
  const T* y = static_cast<const T*>(base);
  T* o = static_cast<T*>(out);
  const bool asks = t.contiguous && lora_products_ask<E>(R);
  for (int64_t m = 0; m < t.rows; m += step) {
    const int64_t rows = imin(step, t.rows - m);
    if constexpr (sizeof(E) == 4) {
      Ahead ahead[2] = {};
      if (asks) ahead[0] = ahead_of(o + index[m] * N, rows * N);
      if (asks && y) ahead[1] = ahead_of(y + index[m] * base_stride, rows * base_stride);
      gemm_store_ahead(rows, N, R, L + m * ls, ls, W, C, ldc, ahead, asks && y && y != o ? 2 : 1);
    } else {
      gemm_store(rows, N, R, L + m * ls, ls, W, C, ldc);
    }
    (asks ? lora_store<false, T> : lora_store<true, T>)(t, m, m + rows, N, C, ldc, scale, index, y, base_stride, o, d, next);
  }
}

// Where the packed operands of each task start: down and up of tasks that have rows.
template <class E>
static int64_t lora_offsets(const LoraArgs& a, int64_t K, int64_t N, int64_t* down, int64_t* up) {
  int64_t total = 0;
  for (int64_t t = 0; t < a.tasks; t++) {
    const bool here = a.task[t].count > 0;
    down[t] = total;
    total += here ? round_up(lora_down_size<E>(K, a.task[t].R), 32) : 0;
    up[t] = total;
    total += here ? round_up(packed_size<E>(a.task[t].R, N), 32) : 0;
  }
  return total;
}

// The packed operands of the tasks. With many tasks each thread packs those of its own tiles, one task after the other,
// into memory that stays in its cache; else all are packed first, together. Bits are the same.
template <class T, class E>
struct LoraPacks {
  const LoraArgs& a;
  const bool backward, needs_up;
  const int64_t K, N;  // rows of K values go to the rank, the rank goes to N values
  int64_t largest = 0;
  bool own;
  Shared<int64_t> offsets{2 * a.tasks + 1};
  int64_t *down = offsets, *up = down + a.tasks;
  const int64_t total = lora_offsets<E>(a, K, N, down, up);
  Shared<E> packed;

  static bool many(const LoraArgs& a) {
    int64_t present = 0;
    for (int64_t t = 0; t < a.tasks; t++) present += a.task[t].count > 0;
    return present >= 2 * num_threads();
  }
  LoraPacks(const LoraArgs& args, bool backward, bool needs_up)
      : a(args), backward(backward), needs_up(needs_up), K(backward ? a.O : a.Din), N(backward ? a.Din : a.O), own(many(a)),
        packed(own ? 0 : total) {
    for (int64_t t = 0; t < a.tasks; t++)
      if (a.task[t].count) largest = imax(largest, (t + 1 < a.tasks ? down[t + 1] : total) - down[t]);
    if (own) return;
    parallel(2 * a.tasks, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; i++)
        if (a.task[i / 2].count) fill(a.task[i / 2], i % 2, packed + (i % 2 ? up : down)[i / 2]);
    });
  }
  void fill(const LoraTask& w, bool is_up, E* to) const {
    const T *wa = static_cast<const T*>(w.a), *wb = static_cast<const T*>(w.b);
    if (!is_up && in_place(w)) return;
    if (!is_up)
      backward ? lora_pack_down<E>(K, w.R, wb, w.b_so, w.b_sr, to) : lora_pack_down<E>(K, w.R, wa, w.a_sk, w.a_sr, to);
    else if (needs_up && backward)
      pack<E>(w.R, N, wa, w.a_sr, w.a_sk, to, 0, ceil_div(N, PW));
    else if (needs_up)
      pack<E>(w.R, N, wb, w.b_sr, w.b_so, to, 0, ceil_div(N, PW));
  }
  static Ahead whole(const void* weight, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return column == 1 && row == columns ? ahead_of(static_cast<const T*>(weight), rows * columns) : Ahead{};
  }
  // Both operands of a forward. What comes next is asked for in the meantime: of a few rows the products are too short.
  void fill_both(const LoraTask& w, const LoraTask& next, E* to, E* up) const {
    const bool dots = lora_uses_dots<E>(w.R);
    const TaskAhead ahead = {whole(w.a, w.R, K, w.a_sr, w.a_sk), whole(w.b, N, w.R, w.b_so, w.b_sr),
                             whole(next.a, next.R, K, next.a_sr, next.a_sk), whole(next.b, N, next.R, next.b_so, next.b_sr),
                             !dots};
    const int64_t down_panels = ceil_div(w.R, PW), up_panels = ceil_div(N, PW);
    if (dots) fill(w, false, to);
    for (int64_t p = 0, bytes = ahead.down.bytes / down_panels; !dots && p < down_panels; p++)
      pack<E>(K, w.R, static_cast<const T*>(w.a), w.a_sk, w.a_sr, to, p, p + 1, nullptr, ahead.at(p * bytes, bytes));
    for (int64_t p = 0, bytes = ahead.up.bytes / up_panels; p < up_panels; p++)
      pack<E>(w.R, N, static_cast<const T*>(w.b), w.b_sr, w.b_so, up, p, p + 1, nullptr,
              ahead.at(ahead.down.bytes + p * bytes, bytes));
  }
  // What a thread has packed.
  struct Own {
    int64_t task;
    E* weights;
  };
  // The operands of a task for the calling thread, which comes to `next` after it (-1: to none).
  const E* of(int64_t task, int64_t next, Own& mine) const {
    if (!own) return packed + down[task];
    if (mine.weights == nullptr) mine.weights = scratch<E>(5, largest);
    E* up = mine.weights + up_offset(task);
    if (mine.task != task && !backward) {
      fill_both(a.task[task], a.task[next < 0 ? task : next], mine.weights, up);
    } else if (mine.task != task) {
      fill(a.task[task], false, mine.weights);
      fill(a.task[task], true, up);
    }
    mine.task = task;
    return mine.weights;
  }
  // The next task of a thread that has the tiles [tile, last).
  int64_t task_after(int64_t tile, int64_t last) const {
    const int64_t task = a.tile[tile].task;
    while (tile < last && a.tile[tile].task == task) tile++;
    return tile < last ? a.tile[tile].task : -1;
  }
  int64_t up_offset(int64_t task) const { return up[task] - down[task]; }
  // A weight of a full rank whose rows are whole vectors is read where it stands: a copy would have the same bits.
  bool in_place(const LoraTask& w) const {
    return sizeof(T) == 4 && sizeof(E) == 4 && w.R == kDotRank && K % VL == 0 && (backward ? w.b_so : w.a_sk) == 1;
  }
  // The operand down to the rank, of a task whose packed operands are given.
  LoraDown<E> down_of(int64_t task, const E* weights) const {
    const LoraTask& w = a.task[task];
    if (!in_place(w)) return {weights, round_up(K, VL)};
    return {static_cast<const E*>(backward ? w.b : w.a), backward ? w.b_sr : w.a_sr};
  }
};

template <class T, class E>
static void grouped_lora_forward_t(const LoraArgs& a) {
  const LoraPacks<T, E> packs(a, false, true);
  const int64_t ldc = round_up(a.max_rank, kRankPad);
  parallel(a.tiles, [&](int64_t i0, int64_t i1) {
    float* C = scratch<float>(1, kLoraTileRows * ldc);
    typename LoraPacks<T, E>::Own mine{-1, nullptr};
    for (int64_t i = i0; i < i1; i++) {
      const LoraTile& t = a.tile[i];
      const LoraTask& w = a.task[t.task];
      int64_t xs, ls;
      const E* X = lora_rows<E, T>(a, t, a.x, a.Din, a.x_stride, a.dropout > 0, &xs);
      const E* weights = packs.of(t.task, packs.task_after(i, i1), mine);
      const LoraRows<T> next(a, i, a.x, a.x_stride);
      lora_down<E>(t.rows, a.Din, w.R, X, xs, packs.down_of(t.task, weights), C, ldc, next.ahead());
      if (a.low)
        for (int64_t m = 0; m < t.rows; m++) {
          T* kept = static_cast<T*>(a.low) + int64_t(a.order[t.first + m]) * a.low_stride;
          for (int64_t r = 0; r < w.R; r += VL) store_first(kept + r, load(C + m * ldc + r), w.R - r);
          for (int64_t r = w.R; r < a.low_stride; r++) from_float(0.f, kept[r]);
        }
      const E* L = lora_rank_rows<E>(t.rows, w.R, C, ldc, &ls);
      lora_up<T, E>(a, t, a.O, w.R, L, ls, weights + packs.up_offset(t.task), w.scale, a.y, a.y_stride, a.out, nullptr,
                    next);
    }
  });
  // Rows without a task: the base bit for bit, or zeros.
  parallel(ceil_div(a.idle, 64), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0 * 64; i < imin(a.idle, i1 * 64); i++) {
      const int64_t row = a.idle_rows[i];
      T* o = static_cast<T*>(a.out) + row * a.O;
      if (a.y == nullptr)
        memset(o, 0, a.O * sizeof(T));
      else if (a.y != a.out)
        memcpy(o, static_cast<const T*>(a.y) + row * a.y_stride, a.O * sizeof(T));
      if (a.low) memset(static_cast<T*>(a.low) + row * a.low_stride, 0, a.low_stride * sizeof(T));
    }
  });
}

static void grouped_lora_forward(const LoraArgs& a) {
  a.type == DType::f32 ? grouped_lora_forward_t<float, float>(a) : grouped_lora_forward_t<bf16, Elem<bf16>>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
