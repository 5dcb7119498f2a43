// parallel_adapter_norm, backward.
//
// Phase 1 goes over blocks of rows: gradient through the norm (dz), bottleneck gradients, dh; sums over rows of a block
// go to that block's own partial sums. Phase 2 goes over column panels of the weight gradients: each is one product over
// all rows of a task in their order. Phase 3 adds the partial sums in order. No result depends on the thread count.
#pragma once
#include "forward.h"
#include "weights.h"

namespace hfk {
namespace HFK_NAMESPACE {

// What phase 1 leaves for the other phases.
template <class E>
struct AdapterTape {
  E* hidden;       // per task [tape_rows][Kt]: act(pre), dropped; rows along K (float: in groups)
  E* dpre;         // the same: gradient of pre
  int64_t stride;  // Kt: the task's rows rounded up to 32, and a little more so that rows do not share cache sets
};

template <class T>
static HFK_INLINE float adapter_scale(const AdapterTask& task, int64_t n) {
  return task.scale ? to_float(static_cast<const T*>(task.scale)[task.scale_size > 1 ? n : 0]) : task.scale_value;
}

template <class T, class E>
struct AdapterBackwardWeights {
  Shared<E*> up, down;         // panels: dt = dz W_u (K = D) and dh = dpre W_d (K = rank)
  Shared<float*> up_rows;      // [8][Dp] on the dot path
  Shared<float*> scale, bias;  // scale as in the forward; down bias is inside pre already
  Shared<E> panels;
  Shared<float> floats;

  static int64_t total_panels(const AdapterNormArgs& a) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.num_tasks; t++)
      if (a.plan->tasks[t].count) n += packed_size<E>(a.D, a.tasks[t].rank) + packed_size<E>(a.tasks[t].rank, a.Dh);
    return n;
  }

  AdapterBackwardWeights(const AdapterNormArgs& a, bool need_dh)
      : up(a.num_tasks), down(a.num_tasks), up_rows(a.num_tasks), scale(a.num_tasks), bias(a.num_tasks),
        panels(total_panels(a)), floats(a.num_tasks * (imax(round_up(a.D, VL), PW) + 8 * round_up(a.D, VL))) {
    const int64_t Dp = round_up(a.D, VL);
    Shared<int64_t> start(a.num_tasks + 1);
    start[0] = 0;
    E* e = panels;
    float* f = floats;
    for (int64_t t = 0; t < a.num_tasks; t++) {
      const AdapterTask& task = a.tasks[t];
      const bool here = a.plan->tasks[t].count > 0;
      start[t + 1] = start[t] + (here ? ceil_div(task.rank, PW) + (need_dh ? ceil_div(a.Dh, PW) : 0) : 0);
      if (!here) continue;
      const bool dot = sizeof(E) == 4 && task.rank <= kDotRank;
      up[t] = e, e += packed_size<E>(a.D, task.rank);
      down[t] = e, e += packed_size<E>(task.rank, a.Dh);
      scale[t] = f, f += imax(Dp, PW);
      up_rows[t] = dot ? f : nullptr;
      if (dot) f += 8 * Dp;
      for (int64_t i = 0; i < imax(Dp, PW); i++) scale[t][i] = i < a.D ? adapter_scale<T>(task, i) : 0.f;
      if (dot) {
        const T* u = static_cast<const T*>(task.up);
        for (int64_t j = 0; j < 8; j++)
          for (int64_t n = 0; n < Dp; n++)
            up_rows[t][j * Dp + n] = j < task.rank && n < a.D ? to_float(u[n * task.rank + j]) * scale[t][n] : 0.f;
      }
    }
    for_panels(a.num_tasks, start, [&](int64_t t, int64_t panel) {
      const AdapterTask& task = a.tasks[t];
      const int64_t up_panels = ceil_div(task.rank, PW);
      if (panel >= up_panels)
        pack<E>(task.rank, a.Dh, static_cast<const T*>(task.down), a.Dh, 1, down[t], panel - up_panels,
                panel - up_panels + 1);
      else if (!up_rows[t])
        pack<E>(a.D, task.rank, static_cast<const T*>(task.up), task.rank, 1, up[t], panel, panel + 1, scale[t]);
    });
  }
};

// Partial sums of one block.
struct AdapterPartial {
  float *weight, *bias;  // [Dp]: dout * xhat and dout
  float* dz;             // [Dp]
  float* dpre;           // [rank rounded up]
};

// dz of one block through the norm; returns rows of dz in floats too when `dz_rows` is set.
template <class T>
static __attribute__((noinline)) void adapter_norm_rows_backward(const AdapterNormBackwardArgs& g, const RowBlock& b,
                                                                 const float* weight, AdapterPartial sums) {
  const AdapterNormArgs& a = g.forward;
  const int64_t D = a.D;
  // What the next block reads is asked for, since the hardware prefetcher does not see that far: along the way in bfloat16,
  // a whole row at once in float32, where there is a line for every vector and other accesses would wait.
  const bool fetch = next_block_follows(b, a.rows);
  const int64_t ahead = fetch && sizeof(T) == 2 ? b.count * D : 0;
  for (int64_t m = 0; m < b.count; m++) {
    const int64_t row = b.index ? b.index[m] : b.first + m;
    const T* dout = static_cast<const T*>(g.dout) + row * D;
    if (fetch && sizeof(T) == 4) {
      fetch_row(static_cast<const T*>(g.dout), row + b.count, D);
      if (a.z) fetch_row(static_cast<const T*>(a.z), row + b.count, D);
    }
    if (a.norm == Norm::none) {
      for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
        constexpr bool full = decltype(f)::value;
        if (sizeof(T) == 2) prefetch_l2(dout + n + ahead);
        store(sums.dz + n, load(sums.dz + n) + get<full>(dout + n, D - n));
      });
      continue;
    }
    const T* z = static_cast<const T*>(a.z) + row * D;
    T* dz = static_cast<T*>(g.dz) + row * D;
    const float rstd = a.rstd[row];
    float mean = a.norm == Norm::layer ? a.mean[row] : 0.f;
    if (sizeof(T) == 2 && a.norm == Norm::layer) {
      // z was rounded when it was saved: centre what was saved, or xhat has a mean where z is large beside its spread.
      V sum = zero();
      for_vectors(D,
                  [&](int64_t n, auto f) __attribute__((always_inline)) { sum += get<decltype(f)::value>(z + n, D - n); });
      mean = hsum(sum) / float(D);
    }
    V c1 = zero(), c2 = zero();
    for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      V d = get<full>(dout + n, D - n), xhat = (get<full>(z + n, D - n) - mean) * rstd, dw = d * load(weight + n);
      if (sizeof(T) == 2) prefetch_l2(dout + n + ahead);
      c1 += dw;
      c2 = fma(dw, xhat, c2);
      store(sums.weight + n, fma(d, xhat, load(sums.weight + n)));
      store(sums.bias + n, load(sums.bias + n) + d);
    });
    const float m1 = a.norm == Norm::layer ? hsum(c1) / float(D) : 0.f, m2 = hsum(c2) / float(D);
    for_vectors(D, [&](int64_t n, auto f) __attribute__((always_inline)) {
      constexpr bool full = decltype(f)::value;
      V d = get<full>(dout + n, D - n), xhat = (get<full>(z + n, D - n) - mean) * rstd;
      if (sizeof(T) == 2) prefetch_l2(z + n + ahead);
      V v = rstd * (d * load(weight + n) - m1 - xhat * m2);
      put<full>(dz + n, v, D - n);
      store(sums.dz + n, load(sums.dz + n) + v);
    });
  }
}

// dpre = dt * act'(pre) * drop for one block, in place of C; hidden = act(pre) * drop into H. Both [rows][ld].
template <class T>
static __attribute__((noinline)) void adapter_activate_backward(const AdapterNormArgs& a, const RowBlock& b, int64_t rank,
                                                                float* C, float* H, int64_t ld, float* dpre_sum) {
  const Dropout drop = make_dropout(a.seed, a.dropout);
  for (int64_t m = 0; m < b.count; m++) {
    const int64_t row = b.index ? b.index[m] : b.first + m;
    const T* pre = static_cast<const T*>(a.pre) + row * a.max_rank;
    const uint32_t hash = a.has_dropout ? dropout_row(drop, uint32_t(row)) : 0;
    for (int64_t n = 0; n < rank; n += VL) {
      V p = load_first(pre + n, rank - n), d = load(C + m * ld + n) * activate_derivative(a.activation, p);
      V t = activate(a.activation, p);
      if (a.has_dropout) {
        V keep = dropout_factor(drop, hash, n);
        d *= keep, t *= keep;
      }
      store(C + m * ld + n, d);
      store(H + m * ld + n, t);
      store(dpre_sum + n, load(dpre_sum + n) + d);
    }
  }
}

// What all passes share, beside the gradients themselves.
template <class T>
struct AdapterBackward {
  const AdapterNormBackwardArgs& g;
  int64_t Dp = round_up(g.forward.D, VL), rv = round_up(imax(g.forward.max_rank, kDotRank), VL);
  int64_t partial_size = 3 * Dp + rv;
  const T* dz = static_cast<const T*>(g.forward.norm == Norm::none ? g.dout : g.dz);
  Shared<float> norm_memory{2 * Dp}, partials{g.forward.plan->count * partial_size}, dscale{g.forward.num_tasks * Dp};
  NormWeights norm = norm_floats<T>(g.forward, norm_memory);

  AdapterPartial partial(int64_t block) const {
    float* p = partials + block * partial_size;
    return {p, p + Dp, p + 2 * Dp, p + 3 * Dp};
  }
};

// Phases 1 and 2.
template <class T>
static void adapter_backward_sums(const AdapterBackward<T>& run) {
  typedef Elem<T> E;
  const AdapterNormBackwardArgs& g = run.g;
  const AdapterNormArgs& a = g.forward;
  const T* dz = run.dz;
  const int64_t D = a.D, Dp = run.Dp, rv = run.rv, Dh = a.Dh, MB = adapter_block_rows<E>(a.max_rank);
  AdapterBackwardWeights<T, E> weights(a, g.dh != nullptr);

  Shared<AdapterTape<E>> tapes(a.num_tasks);
  int64_t tape_size = 0;
  for (int64_t t = 0; t < a.num_tasks; t++)
    tape_size += 2 * tape_rows<E>(a.tasks[t].rank) * (round_up(a.plan->tasks[t].count, 32) + 32);
  Shared<E> tape_memory(tape_size);
  E* tape_at = tape_memory;
  for (int64_t t = 0; t < a.num_tasks; t++) {
    const int64_t stride = round_up(a.plan->tasks[t].count, 32) + 32, rows = tape_rows<E>(a.tasks[t].rank);
    tapes[t] = {tape_at, tape_at + rows * stride, stride};
    tape_at += 2 * rows * stride;
    // Columns of padding take part in bf16 products: they must be finite. Split tiles are padded when they are written.
    if constexpr (sizeof(E) == 2)
      for (int64_t j = 0; j < 2 * rows; j++)
        for (int64_t k = a.plan->tasks[t].count; k < stride; k++) from_float(0.f, tapes[t].hidden[j * stride + k]);
  }
  // Phase 1.
  parallel(a.plan->count, [&](int64_t b0, int64_t b1) {
    float* C = scratch<float>(0, MB * rv);
    float* H = scratch<float>(1, MB * rv);
    E* low = scratch<E>(2, round_up(MB, 32) * padded_k<E>(rv));
    E* rows = scratch<E>(3, round_up(MB, 32) * padded_k<E>(D));
    float* wide = scratch<float>(7, MB * round_up(Dh, VL));
    for (int64_t i = b0; i < b1; i++) {
      const RowBlock& b = a.plan->blocks[i];
      const AdapterPartial sums = run.partial(i);
      memset(sums.weight, 0, size_t(run.partial_size) * 4);
      adapter_norm_rows_backward<T>(g, b, run.norm.weight, sums);
      T* dh = static_cast<T*>(g.dh);
      if (b.task < 0) {
        if (dh)
          for (int64_t m = 0; m < b.count; m++)
            memset(dh + (b.index ? b.index[m] : b.first + m) * Dh, 0, size_t(Dh) * sizeof(T));
        continue;
      }
      const int64_t rank = a.tasks[b.task].rank, ld = imax(round_up(rank, VL), weights.up_rows[b.task] ? 8 : 0);
      int64_t am;
      const E* A = rows_for_product<E>(b.count, D, dz + (b.index ? 0 : b.first * D), D, b.index, rows, &am);
      bool dot = false;
      if constexpr (sizeof(E) == 4) {
        dot = weights.up_rows[b.task] != nullptr;
        if (dot) dot8_rows(b.count, D, A, am, weights.up_rows[b.task], Dp, C, ld);
      }
      if (!dot) gemm_store(b.count, rank, D, A, am, weights.up[b.task], C, ld);
      adapter_activate_backward<T>(a, b, rank, C, H, ld, sums.dpre);
      tape_block(b.count, rank, H, ld, tapes[b.task].hidden, tapes[b.task].stride, b.position);
      tape_block(b.count, rank, C, ld, tapes[b.task].dpre, tapes[b.task].stride, b.position);
      if (!dh) continue;
      const int64_t Kp = padded_k<E>(rank);
      for (int64_t m = 0; m < b.count; m++)
        for (int64_t k = 0; k < Kp; k += VL) store_first(low + m * Kp + k, k < rank ? load(C + m * ld + k) : zero(), Kp - k);
      const int64_t wd = round_up(Dh, VL);
      if (sizeof(T) == 4 && b.index == nullptr && Dh % VL == 0) {
        gemm_store(b.count, Dh, rank, low, Kp, weights.down[b.task], reinterpret_cast<float*>(dh) + b.first * Dh, Dh);
        continue;
      }
      gemm_store(b.count, Dh, rank, low, Kp, weights.down[b.task], wide, wd);
      for (int64_t m = 0; m < b.count; m++) {
        T* d = dh + (b.index ? b.index[m] : b.first + m) * Dh;
        for (int64_t n = 0; n < Dh; n += VL) store_first(d + n, load(wide + m * wd + n), Dh - n);
      }
    }
  });

  // Phase 2: panels of dW_d, then panels of dW_u (with the gradient of the scale, which falls out of it).
  Shared<int64_t> start(a.num_tasks + 1);
  start[0] = 0;
  const int64_t all_panels = a.num_tasks * (ceil_div(Dh, PW) + ceil_div(D, PW));
  const int64_t group = imax(1, imin(kWeightPanels, all_panels / (2 * num_threads())));
  const int64_t down_items = ceil_div(ceil_div(Dh, PW), group), up_items = ceil_div(ceil_div(D, PW), group);
  for (int64_t t = 0; t < a.num_tasks; t++) start[t + 1] = start[t] + down_items + up_items;
  for_panels(a.num_tasks, start, [&](int64_t t, int64_t item) {
    const TaskRows& task_rows = a.plan->tasks[t];
    const AdapterTask& task = a.tasks[t];
    const AdapterGrads& grads = g.grads[t];
    const bool down = item < down_items;
    const int64_t n0 = (down ? item : item - down_items) * group * PW, rank = task.rank, padded = round_up(rank, 16);
    const int64_t width = imin(group * PW, (down ? Dh : D) - n0), panels = ceil_div(width, PW);
    if (down ? !grads.down : !(grads.up || grads.scale)) return;
    float* C = scratch<float>(7, group * padded * PW);
    if (down)
      adapter_weight_panels<T, E>(task_rows, rank, tapes[t].dpre, tapes[t].stride, static_cast<const T*>(a.h), Dh, n0,
                                  panels, C);
    else
      adapter_weight_panels<T, E>(task_rows, rank, tapes[t].hidden, tapes[t].stride, dz, D, n0, panels, C);
    if (down) {
      T* d = static_cast<T*>(grads.down);
      for (int64_t j = 0; j < rank; j++)
        for (int64_t n = 0; n < width; n += VL)
          store_first(d + j * Dh + n0 + n, load(C + (n / PW * padded + j) * PW + n % PW), width - n);
      return;
    }
    const T* up = static_cast<const T*>(task.up);
    T* d = static_cast<T*>(grads.up);
    for (int64_t n = 0; n < width; n++) {
      const float s = adapter_scale<T>(task, n0 + n);
      const float* c = C + n / PW * padded * PW + n % PW;
      double sum = 0.0;
      if (grads.scale)
        for (int64_t j = 0; j < rank; j++) sum += double(c[j * PW]) * double(to_float(up[(n0 + n) * rank + j]));
      if (d)
        for (int64_t j = 0; j < rank; j++) from_float(c[j * PW] * s, d[(n0 + n) * rank + j]);
      run.dscale[t * Dp + n0 + n] = float(sum);
    }
  });
}

template <class T>
static void parallel_adapter_norm_backward_t(const AdapterNormBackwardArgs& g) {
  const AdapterNormArgs& a = g.forward;
  const AdapterBackward<T> run{g};
  const int64_t D = a.D, Dp = run.Dp, rv = run.rv, blocks = a.plan->count;
  adapter_backward_sums(run);

  // Phase 3 for the sums that are vectors: dnorm, and per task the sums of dz and dpre.
  Shared<float> totals((2 + a.num_tasks) * Dp + a.num_tasks * rv);
  float *dweight = totals, *dbias = totals + Dp, *task_dz = totals + 2 * Dp, *task_dpre = task_dz + a.num_tasks * Dp;
  memset(totals, 0, size_t((2 + a.num_tasks) * Dp + a.num_tasks * rv) * 4);
  parallel(ceil_div(Dp, 128) + 1, [&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c++) {
      const bool ranks = c == ceil_div(Dp, 128);
      const int64_t n0 = ranks ? 0 : c * 128, n1 = ranks ? rv : imin(Dp, n0 + 128);
      for (int64_t i = 0; i < blocks; i++) {
        const AdapterPartial s = run.partial(i);
        const int64_t t = a.plan->blocks[i].task;
        for (int64_t n = n0; n < n1; n += VL) {
          if (ranks) {
            if (t >= 0) store(task_dpre + t * rv + n, load(task_dpre + t * rv + n) + load(s.dpre + n));
            continue;
          }
          store(dweight + n, load(dweight + n) + load(s.weight + n));
          store(dbias + n, load(dbias + n) + load(s.bias + n));
          if (t >= 0) store(task_dz + t * Dp + n, load(task_dz + t * Dp + n) + load(s.dz + n));
        }
      }
    }
  });
  auto put_all = [](const float* s, int64_t n, void* target) {
    T* d = static_cast<T*>(target);
    for (int64_t i = 0; d && i < n; i++) from_float(s[i], d[i]);
  };
  put_all(dweight, D, g.dnorm_weight);
  put_all(dbias, D, g.dnorm_bias);

  for (int64_t t = 0; t < a.num_tasks; t++) {
    const AdapterTask& task = a.tasks[t];
    const AdapterGrads& grads = g.grads[t];
    put_all(task_dpre + t * rv, task.rank, grads.down_bias);
    double whole = 0.0;  // one number out of rows * D terms
    for (int64_t n = 0; n < D; n++) {
      float* sum = task_dz + t * Dp + n;
      if (grads.scale) {
        const T* bias = static_cast<const T*>(task.up_bias);
        const float ds = run.dscale[t * Dp + n] + (bias ? to_float(bias[n]) * *sum : 0.f);
        if (task.scale_size > 1)
          from_float(ds, static_cast<T*>(grads.scale)[n]);
        else
          whole += ds;
      }
      *sum *= adapter_scale<T>(task, n);
    }
    if (grads.scale && task.scale_size == 1) from_float(float(whole), *static_cast<T*>(grads.scale));
    put_all(task_dz + t * Dp, D, grads.up_bias);
  }
}

static void parallel_adapter_norm_backward(const AdapterNormBackwardArgs& g) {
  g.forward.type == DType::f32 ? parallel_adapter_norm_backward_t<float>(g) : parallel_adapter_norm_backward_t<bf16>(g);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
