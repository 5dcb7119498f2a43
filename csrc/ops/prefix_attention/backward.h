// prefix_attention backward. One work item is one key head of a unit: up to kPrefixUnitRows batch rows of one task. It
// recomputes the probabilities, and sums the gradients of its prefix over its rows; units are added in order afterwards,
// so that nothing depends on the number of threads. A thread takes its heads of a unit row by row (fetch.h).
// Gradients of keys and values are summed transposed, [D][columns]:
//   gK += q^T dS,  gV += dO^T p   for blocks of queries.
#pragma once
#include "forward.h"
#include "gradients.h"

namespace hfk {
namespace HFK_NAMESPACE {

template <class T, class E>
struct PrefixBackward {
  static constexpr bool fine = sizeof(T) == 4, low = sizeof(E) == 2;
  const PrefixAttentionBackwardArgs& a;
  const PrefixShape z;
  const Dropout drop;
  const int64_t D, Dp, Dv, Dr, Tkp;  // Dr: whole tiles of 16 rows are added to
  PackedPrefixes<E> prefix_keys, prefix_values, prefix_rows;
  const int64_t partial;  // floats of the prefix gradients of one unit and key head: keys, then values, each [Dr][PP]
  Shared<float> partials;

  explicit PrefixBackward(const PrefixAttentionBackwardArgs& args)
      : a(args), z(prefix_shape<E>(a)), drop(make_dropout(a.seed, a.dropout)), D(a.D), Dp(padded_k<E>(D)),
        Dv(round_up(D, VL)), Dr(round_up(D, 16)), Tkp(padded_k<E>(a.Tk)),
        prefix_keys(a.tasks, a.G, columns_size<E>(D, z.PP)), prefix_values(a.tasks, a.G, columns_size<E>(D, z.PP)),
        prefix_rows(a.tasks, a.G, rows_size<E>(D, z.PP)), partial(2 * Dr * z.PP),
        partials(a.grad_prefix_key ? a.units * a.G * partial : 0) {}

  void pack_prefixes() {
    parallel(a.tasks * a.G, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; i++) {
        const int64_t t = i / a.G, g = i % a.G, P = a.prefix_length[t];
        const T *k = static_cast<const T*>(a.prefix_key[t]) + g * P * D,
                *v = static_cast<const T*>(a.prefix_value[t]) + g * P * D;
        pack_columns(P, D, k, D, prefix_keys.at(t, g));
        pack_columns(P, D, v, D, prefix_values.at(t, g));
        pack_rows(P, padded_prefix(P), D, k, D, prefix_rows.at(t, g), padded_prefix(P) * kColumns<E>);
      }
    });
  }

  // What a thread works with. bfloat16 only: probabilities and score gradients rounded, as pairs, and transposed blocks.
  struct Workspace {
    E *keys, *values, *key_rows, *query_rows, *grad_rows;
    float *scores, *gradients, *key_sums, *value_sums, *mixed;
    E *low_scores, *low_gradients, *pairs, *turned;
    RowBias bias;
    FetchAhead ahead;
    explicit Workspace(const PrefixBackward& p)
        : keys(scratch<E>(0, columns_size<E>(p.D, p.a.Tk))), values(scratch<E>(1, columns_size<E>(p.D, p.a.Tk))),
          key_rows(scratch<E>(2, rows_size<E>(p.D, p.z.PP + p.Tkp))), query_rows(scratch<E>(3, 2 * p.z.block * p.Dp)),
          grad_rows(query_rows + p.z.block * p.Dp), scores(scratch<float>(4, 2 * p.z.block * p.z.width)),
          gradients(scores + p.z.block * p.z.width), key_sums(scratch<float>(5, 2 * p.Dr * p.z.width)),
          value_sums(key_sums + p.Dr * p.z.width), mixed(scratch<float>(6, p.z.block * p.Dv)),
          low_scores(low ? scratch<E>(8, 2 * p.z.block * p.z.width) : nullptr),
          low_gradients(low ? low_scores + p.z.block * p.z.width : nullptr),
          pairs(low ? scratch<E>(9, p.z.block * round_up(p.z.width, 32)) : nullptr),
          turned(low ? scratch<E>(10, 2 * round_up(p.D, 32) * p.z.block) : nullptr),
          bias(p.a, scratch<float>(7, p.z.TP + VL)), ahead(p.a, p.a.unit_start[p.a.units]) {
      ahead.add(p.a.grad_out, true);
      ahead.add(p.a.grad_query, true);
      ahead.add(p.a.grad_key, false);
      ahead.add(p.a.grad_value, false);
    }
  };

  // One key head of one row; prefix_sums (or null) are added to.
  void row(Workspace& w, int64_t task, int64_t b, int64_t g, float* prefix_sums) const {
    const int64_t P = task >= 0 ? a.prefix_length[task] : 0, PP = padded_prefix(P);
    const int64_t panel = (PP + Tkp) * kColumns<E>;
    const T *k = head_at<const T>(a.key, b, g), *v = head_at<const T>(a.value, b, g);
    pack_columns(a.Tk, D, k, a.key.token, w.keys);
    pack_columns(a.Tk, D, v, a.value.token, w.values);
    if (PP) place_rows(PP, D, prefix_rows.at(task, g), w.key_rows, panel);
    pack_rows(a.Tk, Tkp, D, k, a.key.token, w.key_rows + PP * kColumns<E>, panel);
    const bool want_real = a.grad_key.data != nullptr;
    for (int64_t d = 0; d < 2 * Dr && want_real; d++) clear(w.key_sums + d * z.width, 0, z.TP);
    for (int64_t h = g * z.rep; h < (g + 1) * z.rep; h++)
      for (int64_t m0 = 0; m0 < a.Tq; m0 += z.block) block(w, task, b, g, h, m0, PP ? prefix_sums : nullptr);
    if (!want_real) return;
    write_transposed(w.key_sums, z.width, a.Tk, D, a.scaling, head_at<T>(a.grad_key, b, g), a.grad_key.token);
    write_transposed(w.value_sums, z.width, a.Tk, D, 1.f, head_at<T>(a.grad_value, b, g), a.grad_value.token);
  }

  // One block of queries of query head h.
  void block(Workspace& w, int64_t task, int64_t b, int64_t g, int64_t h, int64_t m0, float* prefix_sums) const {
    const int64_t P = task >= 0 ? a.prefix_length[task] : 0, PP = padded_prefix(P), width = z.width;
    const int64_t mb = imin(z.block, a.Tq - m0), seen = visible_keys(a, m0 + mb - 1), end = round_up(seen, 32);
    int64_t qm, gm;
    const E* q = near_rows<E>(mb, D, head_at<const T>(a.query, b, h) + m0 * a.query.token, a.query.token, w.query_rows, &qm);
    const E* o =
        near_rows<E>(mb, D, head_at<const T>(a.grad_out, b, h) + m0 * a.grad_out.token, a.grad_out.token, w.grad_rows, &gm);
    // Few queries: products that are summed as forward sums them, in many short sums. One row has no others in which the
    // roundings of one long sum would average out, and an error of a score is a relative one of its probability.
    const bool few = !low && !kProductsInDouble && a.Tq * z.rep <= 8;
    const auto product = [&](const E* left, int64_t stride, const T* rows, int64_t row_stride, const E* packed, int64_t n,
                             float* out) {
      if constexpr (!low)
        if (few) return score_rows(mb, n, D, left, stride, rows, row_stride, out, width);
      panels_product(mb, n, D, left, stride, packed, columns_panel<E>(D), out, width, w.ahead);
    };
    if (PP) {
      product(q, qm, static_cast<const T*>(a.prefix_key[task]) + g * P * D, D, prefix_keys.at(task, g), P, w.scores);
      product(o, gm, static_cast<const T*>(a.prefix_value[task]) + g * P * D, D, prefix_values.at(task, g), P, w.gradients);
    }
    if (seen) {
      product(q, qm, head_at<const T>(a.key, b, g), a.key.token, w.keys, seen, w.scores + PP);
      product(o, gm, head_at<const T>(a.value, b, g), a.value.token, w.values, seen, w.gradients + PP);
    }
    for (int64_t m = 0; m < mb; m += VL) {
      const int64_t count = imin(VL, mb - m);
      int64_t visible[VL];
      for (int64_t r = 0; r < count; r++) visible[r] = visible_keys(a, m0 + m + r);
      RowResults results;
      softmax_rows<fine>(a, w.scores + m * width, width, count, P, PP, visible, end, w.bias, b, h, m0 + m, nullptr, results,
                         low ? &w.ahead : nullptr);
      for (int64_t r = 0; r < count; r++) {
        const int64_t at = (m + r) * width;
        bf16 *low_s = low ? reinterpret_cast<bf16*>(w.low_scores) + at : nullptr,
             *low_t = low ? reinterpret_cast<bf16*>(w.low_gradients) + at : nullptr;
        gradient_row(a, drop, w.scores + at, w.gradients + at, results.factor[r], P, PP, visible[r], seen, end,
                     (b * a.H + h) * a.Tq + m0 + m + r, low_s, low_t);
      }
    }
    const E *p, *ds;
    if constexpr (low)
      p = w.low_scores, ds = w.low_gradients;
    else
      p = w.scores, ds = w.gradients;
    if (a.grad_query.data) {
      panels_product(mb, D, PP + seen, ds, width, w.key_rows, (PP + Tkp) * kColumns<E>, w.mixed, Dv, w.ahead);
      T* out = head_at<T>(a.grad_query, b, h) + m0 * a.grad_query.token;
      for (int64_t m = 0; m < mb; m++)
        for (int64_t d = 0; d < D; d += VL)
          store_first(out + m * a.grad_query.token + d, load(w.mixed + m * Dv + d) * float(a.scaling), D - d);
    }
    const bool want_real = a.grad_key.data != nullptr;
    if (!prefix_sums && !want_real) return;
    add_query_sums(mb, D, PP, end, q, qm, ds, width, w.pairs, w.turned, prefix_sums, z.PP, want_real ? w.key_sums : nullptr);
    add_query_sums(mb, D, PP, end, o, gm, p, width, w.pairs, w.turned, prefix_sums ? prefix_sums + Dr * z.PP : nullptr, z.PP,
                   want_real ? w.value_sums : nullptr);
  }

  void rows() {
    parallel(a.units * a.G, [&](int64_t i0, int64_t i1) {
      Workspace w(*this);
      for (int64_t i = i0; i < i1;) {
        const int64_t u = i / a.G, g0 = i % a.G, g1 = imin(a.G, g0 + i1 - i), first = a.unit_start[u];
        float* sums = partials.data ? partials.data + i * partial : nullptr;
        if (sums) memset(sums, 0, size_t((g1 - g0) * partial) * 4);
        for (int64_t place = first; place < a.unit_start[u + 1]; place++)
          for (int64_t g = g0; g < g1; g++) {
            w.ahead.before(place, g, g0, g1, i == i0 && place == first && g == g0);
            row(w, a.unit_task[u], row_at(a, place), g, sums ? sums + (g - g0) * partial : nullptr);
          }
        i += g1 - g0;
      }
    });
  }

  void sum_units() const {
    parallel(a.tasks * a.G, [&](int64_t i0, int64_t i1) {
      float* total = scratch<float>(5, partial);
      for (int64_t i = i0; i < i1; i++) {
        const int64_t t = i / a.G, g = i % a.G, P = a.prefix_length[t];
        memset(total, 0, size_t(partial) * 4);
        for (int64_t u = 0; u < a.units; u++) {
          if (a.unit_task[u] != t) continue;
          const float* p = partials + (u * a.G + g) * partial;
          for (int64_t d = 0; d < 2 * Dr; d++)
            for (int64_t n = 0; n < padded_prefix(P); n += VL)
              store(total + d * z.PP + n, load(total + d * z.PP + n) + load(p + d * z.PP + n));
        }
        write_transposed(total, z.PP, P, D, a.scaling, static_cast<T*>(a.grad_prefix_key[t]) + g * P * D, D);
        write_transposed(total + Dr * z.PP, z.PP, P, D, 1.f, static_cast<T*>(a.grad_prefix_value[t]) + g * P * D, D);
      }
    });
  }
};

template <class T, class E>
static void prefix_attention_backward_t(const PrefixAttentionBackwardArgs& a) {
  PrefixBackward<T, E> backward(a);
  backward.pack_prefixes();
  backward.rows();
  if (a.grad_prefix_key) backward.sum_units();
}

static void prefix_attention_backward(const PrefixAttentionBackwardArgs& a) {
  a.type == DType::f32 ? prefix_attention_backward_t<float, float>(a) : prefix_attention_backward_t<bf16, Elem<bf16>>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
