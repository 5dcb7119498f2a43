// parallel_adapter_norm: the weights of a task as its products want them, and the product for small ranks.
#pragma once
#include "../../gemm/dot8.h"
#include "../../gemm/pack.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

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

template <class T>
static HFK_INLINE void to_floats(const void* source, int64_t n, int64_t padded, float factor, float* d) {
  const T* s = static_cast<const T*>(source);
  for (int64_t i = 0; i < padded; i++) d[i] = s && i < n ? to_float(s[i]) * factor : 0.f;
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

// The packed weights of the tasks. With many tasks each thread packs those of its own blocks, one task after the other, into
// memory that stays in its cache; else all are packed first, together. Bits are the same.
template <class T, class E>
struct AdapterWeights {
  const AdapterNormArgs& a;
  const bool own;
  Shared<AdapterPack<E>> packs;
  Shared<E> panels;
  Shared<float> floats;

  static int64_t panel_elements(const AdapterTask& t, int64_t D, int64_t Dh) {
    return packed_size<E>(Dh, t.rank) + packed_size<E>(t.rank, D);
  }
  static int64_t float_elements(const AdapterTask& t, int64_t D, int64_t Dh) {
    return round_up(t.rank, VL) + 2 * round_up(D, VL) + PW + (uses_dots(t) ? 8 * round_up(Dh, VL) : 0);
  }
  static bool uses_dots(const AdapterTask& t) { return sizeof(E) == 4 && t.rank <= kDotRank; }
  static int64_t total(const AdapterNormArgs& a, int64_t (*size)(const AdapterTask&, int64_t, int64_t)) {
    int64_t n = 0;
    for (int64_t t = 0; t < a.num_tasks; t++)
      if (a.plan->tasks[t].count) n += size(a.tasks[t], a.D, a.Dh);
    return n;
  }
  static bool many(const AdapterNormArgs& a) {
    int64_t present = 0;
    for (int64_t t = 0; t < a.num_tasks; t++) present += a.plan->tasks[t].count > 0;
    return present >= 2 * num_threads();
  }

  explicit AdapterWeights(const AdapterNormArgs& args)
      : a(args), own(many(a)), packs(own ? 0 : a.num_tasks), panels(own ? 0 : total(a, panel_elements)),
        floats(own ? 0 : total(a, float_elements)) {
    if (own) return;
    Shared<int64_t> start(a.num_tasks + 1);
    start[0] = 0;
    E* e = panels;
    float* f = floats;
    for (int64_t t = 0; t < a.num_tasks; t++) {
      const AdapterTask& task = a.tasks[t];
      const bool here = a.plan->tasks[t].count > 0;
      start[t + 1] = start[t] + (here ? ceil_div(task.rank, PW) + ceil_div(a.D, PW) : 0);
      if (!here) continue;
      packs[t] = place(task, e, f);
      e += panel_elements(task, a.D, a.Dh), f += float_elements(task, a.D, a.Dh);
    }
    for_panels(a.num_tasks, start, [&](int64_t t, int64_t panel) { pack_one(a.tasks[t], packs[t], panel); });
  }

  // Where the weights of a task stand in memory that is large enough; those that are no panels are filled in.
  AdapterPack<E> place(const AdapterTask& task, E* e, float* f) const {
    AdapterPack<E> p;
    const int64_t Dp = round_up(a.D, VL), Rp = round_up(task.rank, VL), Hp = round_up(a.Dh, VL);
    p.down = e, p.up = e + packed_size<E>(a.Dh, task.rank);
    p.down_bias = f, p.up_bias = f + Rp, p.scale = f + Rp + Dp;
    p.down_rows = uses_dots(task) ? p.scale + imax(Dp, PW) : nullptr;
    to_floats<T>(task.down_bias, task.rank, Rp, 1.f, p.down_bias);
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
    for (int64_t j = 0; p.down_rows && j < 8; j++)
      to_floats<T>(j < task.rank ? static_cast<const T*>(task.down) + j * a.Dh : nullptr, a.Dh, Hp, 1.f,
                   p.down_rows + j * Hp);
    return p;
  }
  // One panel: those of W_d^T, then those of W_u^T.
  void pack_one(const AdapterTask& task, const AdapterPack<E>& p, int64_t panel, Ahead more = {}) const {
    const int64_t down_panels = ceil_div(task.rank, PW), up_panel = panel - down_panels;
    if (up_panel >= 0)
      pack<E>(task.rank, a.D, static_cast<const T*>(task.up), 1, task.rank, p.up, up_panel, up_panel + 1, nullptr, more);
    else if (!p.down_rows)
      pack<E>(a.Dh, task.rank, static_cast<const T*>(task.down), 1, a.Dh, p.down, panel, panel + 1, nullptr, more);
  }
  // All panels of a task. What comes next is asked for in the meantime: of a few rows the products are too short for that.
  void pack_all(const AdapterTask& task, const AdapterPack<E>& p, const AdapterTask& next) const {
    auto whole = [](const void* weight, int64_t count) { return ahead_of(static_cast<const T*>(weight), count); };
    const TaskAhead ahead = {whole(task.down, task.rank * a.Dh), whole(task.up, task.rank * a.D),
                             whole(next.down, next.rank * a.Dh), whole(next.up, next.rank * a.D), !uses_dots(task)};
    const int64_t down_panels = ceil_div(task.rank, PW), up_panels = ceil_div(a.D, PW);
    for (int64_t i = 0, bytes = ahead.down.bytes / down_panels; i < down_panels; i++)
      pack_one(task, p, i, ahead.at(i * bytes, bytes));
    for (int64_t i = 0, bytes = ahead.up.bytes / up_panels; i < up_panels; i++)
      pack_one(task, p, down_panels + i, ahead.at(ahead.down.bytes + i * bytes, bytes));
  }
  // What a thread has packed.
  struct Own {
    int64_t task = -1;
    AdapterPack<E> pack;
  };
  // The weights of a task for the calling thread, which comes to `next` after it (-1: to none).
  const AdapterPack<E>& of(int64_t t, int64_t next, Own& mine) const {
    if (!own) return packs[t];
    if (mine.task != t) {
      const AdapterTask& task = a.tasks[t];
      mine.pack =
          place(task, scratch<E>(4, panel_elements(task, a.D, a.Dh)), scratch<float>(5, float_elements(task, a.D, a.Dh)));
      pack_all(task, mine.pack, a.tasks[next < 0 ? t : next]);
    }
    mine.task = t;
    return mine.pack;
  }
  // The next task of a thread that has the blocks [block, last).
  int64_t task_after(int64_t block, int64_t last) const {
    const int64_t task = a.plan->blocks[block].task;
    while (block < last && a.plan->blocks[block].task == task) block++;
    return block < last ? a.plan->blocks[block].task : -1;
  }
};

}  // namespace HFK_NAMESPACE
}  // namespace hfk
