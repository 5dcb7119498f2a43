// parallel_adapter_norm, forward.
//
// Rows are cut into blocks of one task. A block runs down product, activation, up product and the row pass (residual,
// norm) while its rows are in cache; x, residual and h are read once and out is written once.
#pragma once
#include "../../base/math.h"
#include "../../base/vectors.h"
#include "../../gemm/gemm.h"
#include "args.h"
#include "pack.h"

namespace hfk {
namespace HFK_NAMESPACE {

// Rows of the product up that wait for the pass over them: few floats, so that they stay in the first-level cache, unless
// the weights, which every such product reads, are large beside that.
constexpr int64_t kSmallRank = 128;
template <class E>
static HFK_INLINE int64_t adapter_up_rows(int64_t rank) {
  return sizeof(E) == 2 || rank > kSmallRank ? 96 : 12;
}

// Rows of a block: enough to use the weights in cache many times, few enough that the block stays there too.
template <class E>
static HFK_INLINE int64_t adapter_block_rows(int64_t max_rank) {
  if (sizeof(E) == 2) return max_rank <= 128 ? 64 : 96;
  return max_rank <= 32 ? 24 : max_rank <= 128 ? 48 : 96;
}

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

// Asks for a row that the next block reads: the hardware prefetcher does not see that far.
template <class T>
static HFK_INLINE void fetch_row(const T* rows, int64_t row, int64_t D) {
  for (int64_t n = 0; n < D; n += 64 / int64_t(sizeof(T))) prefetch_l2(rows + row * D + n);
}
static HFK_INLINE int64_t row_of(const RowBlock& b, int64_t m) { return b.index ? b.index[m] : b.first + m; }
static HFK_INLINE bool next_block_follows(const RowBlock& b, int64_t rows) {
  return b.index == nullptr && b.first + 2 * b.count <= rows;
}

struct NormWeights {
  const float *weight, *bias;  // [D rounded up to VL]
};

// z = x [+ residual] [+ scale * C + up_bias], then the norm, for rows m0 to m1 of a block. C: [m1 - m0][Dp], overwritten by
// z. fetch: no product has asked for what is read here and for h of the next block, so it is asked for along the way.
template <class T, bool delta, bool fetch>
static __attribute__((noinline)) void adapter_rows(const AdapterNormArgs& a, const RowBlock& b, const RowBlock& next,
                                                   int64_t m0, int64_t m1, const AdapterPack<Elem<T>>& p, NormWeights w,
                                                   float* C, int64_t Dp) {
  constexpr int64_t few = 4;
  const int64_t D = a.D;
  for (int64_t m = m0; m < m1; m++) {
    const int64_t row = row_of(b, m), ahead = (row_of(b, imin(m + few, b.count - 1)) - row) * D;
    const T* x = static_cast<const T*>(a.x) + row * D;
    const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * D : nullptr;
    T* z_out = a.z ? static_cast<T*>(a.z) + row * D : nullptr;
    T* out = static_cast<T*>(a.out) + row * D;
    float* z = C + (m - m0) * Dp;
    if (fetch && a.h != a.x) fetch_row(static_cast<const T*>(a.h), row_of(next, imin(m, next.count - 1)), a.Dh);
    V s0 = zero(), q0 = zero();
    for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      V v = get<full>(x + n, D - n);
      if (fetch && n % (64 / int64_t(sizeof(T))) == 0) {
        prefetch_l2(x + n + ahead);
        prefetch_l2(out + n + ahead);
        if (residual) prefetch_l2(residual + n + ahead);
      }
      if (residual) v += get<full>(residual + n, D - n);
      if (delta) v += fma(load(z + n), load(p.scale + n * p.scale_step), load(p.up_bias + n));
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

// The product up and the pass over its rows, a few rows at a time: between the two they stay in the first-level cache.
template <class T, class E>
static void adapter_up(const AdapterNormArgs& a, const RowBlock& b, const RowBlock& next, int64_t rank, const E* t,
                       int64_t tm, const AdapterPack<E>& p, NormWeights norm, float* C, int64_t Dp) {
  const int64_t D = a.D;
  const bool asks = sizeof(E) == 4 && rank >= 32 && rank <= kSmallRank && b.index == nullptr;
  const int64_t step = adapter_up_rows<E>(rank);
  for (int64_t m = 0; m < b.count; m += step) {
    const int64_t rows = imin(step, b.count - m);
    if constexpr (sizeof(E) == 4) {
      // What the pass reads and writes is asked for while the product runs, which waits for no memory itself.
      Ahead ahead[4] = {};
      int count = 0;
      const void* const moved[] = {a.x, a.residual, a.out, a.z};
      for (const void* rows_of : moved)
        if (asks && rows_of) ahead[count++] = ahead_of(static_cast<const T*>(rows_of) + (b.first + m) * D, rows * D);
      gemm_store_ahead(rows, D, rank, t + m * tm, tm, p.up, C, Dp, ahead, asks ? count : 1);
    } else {
      gemm_store(rows, D, rank, t + m * tm, tm, p.up, C, Dp);
    }
    (asks ? adapter_rows<T, true, false> : adapter_rows<T, true, true>)(a, b, next, m, m + rows, p, norm, C, Dp);
  }
}

template <class T>
static void parallel_adapter_norm_forward_t(const AdapterNormArgs& a) {
  typedef Elem<T> E;
  Shared<float> norm_memory(2 * round_up(a.D, VL));
  const NormWeights norm = norm_floats<T>(a, norm_memory);
  const int64_t Dp = round_up(a.D, VL), MB = adapter_block_rows<E>(a.max_rank);
  const AdapterWeights<T, E> weights(a);
  const int64_t rp = round_up(imax(a.max_rank, kDotRank), PW);
  parallel(a.plan->count, [&](int64_t b0, int64_t b1) {
    float* C = scratch<float>(0, adapter_up_rows<E>(a.max_rank) * imax(Dp, 1));
    float* hidden = scratch<float>(1, MB * rp);
    E* t = scratch<E>(2, round_up(MB, 32) * padded_k<E>(rp));
    E* rows = scratch<E>(3, round_up(MB, 32) * padded_k<E>(a.Dh));
    typename AdapterWeights<T, E>::Own mine;
    for (int64_t i = b0; i < b1; i++) {
      const RowBlock &b = a.plan->blocks[i], &next = a.plan->blocks[imin(i + 1, b1 - 1)];
      if (b.task < 0) {
        const int64_t step = adapter_up_rows<E>(1);
        for (int64_t m = 0; m < b.count; m += step)
          adapter_rows<T, false, true>(a, b, next, m, imin(b.count, m + step), {}, norm, C, Dp);
        continue;
      }
      const AdapterPack<E>& p = weights.of(b.task, weights.task_after(i, b1), mine);
      const int64_t rank = a.tasks[b.task].rank;
      const int64_t ld = p.down_rows ? imax(round_up(rank, VL), kDotRank) : round_up(rank, VL);
      const T* h = static_cast<const T*>(a.h) + (b.index ? 0 : b.first * a.Dh);
      const int64_t tm = padded_k<E>(rank);
      int64_t am;
      const E* A = rows_for_product<E>(b.count, a.Dh, h, a.Dh, b.index, rows, &am);
      if constexpr (sizeof(E) == 4) {
        const Ahead ahead =
            next.index ? Ahead{} : ahead_of(static_cast<const T*>(a.h) + next.first * a.Dh, next.count * a.Dh);
        if (p.down_rows)
          dot8_rows(b.count, a.Dh, A, am, p.down_rows, round_up(a.Dh, VL), hidden, ld);
        else
          gemm_store(b.count, rank, a.Dh, A, am, p.down, hidden, ld, ahead);
      } else {
        gemm_store(b.count, rank, a.Dh, A, am, p.down, hidden, ld);
      }
      adapter_activate<T>(a, b, rank, p.down_bias, hidden, ld, t, tm);
      adapter_up<T>(a, b, next, rank, t, tm, p, norm, C, Dp);
    }
  });
}
static void parallel_adapter_norm_forward(const AdapterNormArgs& a) {
  a.type == DType::f32 ? parallel_adapter_norm_forward_t<float>(a) : parallel_adapter_norm_forward_t<bf16>(a);
}
static void parallel_adapter_norm_block_rows(const AdapterBlockRows& a) {
  *a.rows = a.type == DType::f32 ? adapter_block_rows<float>(a.max_rank) : adapter_block_rows<Elem<bf16>>(a.max_rank);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
