// prefix_attention: border to torch.
#include "args.h"

namespace hfk {
namespace {

typedef std::vector<Tensor> Tensors;

HeadsView heads_view(const Tensor& t, const Tensor& like, int64_t rows, int64_t heads, int64_t tokens, int64_t dim,
                     const char* name) {
  HFK_CHECK(t.dim() == 4 && t.size(0) == rows && t.size(1) == heads && t.size(2) == tokens && t.size(3) == dim,
            "prefix_attention: ", name, ": expected [", rows, ", ", heads, ", ", tokens, ", ", dim, "]");
  HFK_CHECK(t.scalar_type() == like.scalar_type(), "prefix_attention: ", name, ": expected the query's dtype");
  HFK_CHECK(dim <= 1 || t.numel() == 0 || t.stride(3) == 1, "prefix_attention: ", name,
            ": expected stride 1 on the last axis, got ", t.stride(3));
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

ScoreView score_view(const Tensor& t, ScalarType type, const PrefixAttentionArgs& a, const char* name) {
  HFK_CHECK(t.dim() == 4 && t.size(0) == a.B && t.size(1) == a.H && t.size(2) == a.Tq && t.size(3) == a.Tk,
            "prefix_attention: ", name, ": expected [", a.B, ", ", a.H, ", ", a.Tq, ", ", a.Tk, "]");
  HFK_CHECK(t.scalar_type() == type, "prefix_attention: ", name, ": wrong dtype");
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Keeps what the argument struct points to.
struct Lists {
  std::vector<const void*> prefix_key, prefix_value;
  std::vector<int64_t> length, ids, order;
};

void fill(PrefixAttentionArgs& a, Lists& lists, const Tensor& query, const Tensor& key, const Tensor& value,
          const Tensors& prefix_key, const Tensors& prefix_value, const OptTensor& ids, const OptTensor& mask,
          const OptTensor& bias, bool causal, double scaling, int64_t form, double dropout, int64_t seed, bool dropout_on) {
  a.type = dtype_of(query, "prefix_attention: query");
  HFK_CHECK(query.dim() == 4 && key.dim() == 4, "prefix_attention: query and key: expected 4 axes");
  a.B = query.size(0), a.H = query.size(1), a.Tq = query.size(2), a.D = query.size(3);
  a.G = key.size(1), a.Tk = key.size(2);
  HFK_CHECK(a.G > 0 && a.H % a.G == 0, "prefix_attention: key's heads: expected a divisor of ", a.H, ", got ", a.G);
  a.query = heads_view(query, query, a.B, a.H, a.Tq, a.D, "query");
  a.key = heads_view(key, query, a.B, a.G, a.Tk, a.D, "key");
  a.value = heads_view(value, query, a.B, a.G, a.Tk, a.D, "value");
  a.tasks = int64_t(prefix_key.size());
  HFK_CHECK(prefix_value.size() == prefix_key.size(), "prefix_attention: prefixes: expected as many values as keys");
  for (int64_t t = 0; t < a.tasks; t++) {
    const Tensor &k = prefix_key[t], &v = prefix_value[t];
    for (const Tensor* p : {&k, &v})
      HFK_CHECK(p->dim() == 3 && p->size(0) == a.G && p->size(1) == k.size(1) && p->size(2) == a.D && p->is_contiguous() &&
                    p->scalar_type() == query.scalar_type(),
                "prefix_attention: prefix ", t, ": expected a contiguous [", a.G, ", P, ", a.D, "] of the query's dtype");
    lists.prefix_key.push_back(k.data_ptr());
    lists.prefix_value.push_back(v.data_ptr());
    lists.length.push_back(k.size(1));
  }
  a.prefix_key = lists.prefix_key.data(), a.prefix_value = lists.prefix_value.data();
  a.prefix_length = lists.length.data();
  lists.ids.assign(size_t(a.B), 0);
  if (ids.has_value()) {
    HFK_CHECK(ids->scalar_type() == ScalarType::Long && ids->is_contiguous() && ids->numel() == a.B,
              "prefix_attention: ids: expected ", a.B, " contiguous int64");
    for (int64_t b = 0; b < a.B; b++) lists.ids[size_t(b)] = ptr_of<int64_t>(*ids)[b];
  }
  for (int64_t id : lists.ids)
    HFK_CHECK(id >= -1 && id < a.tasks, "prefix_attention: task id: expected -1 (no prefix) or 0..", a.tasks - 1, ", got ",
              id);
  a.ids = lists.ids.data();
  for (int64_t t = -1; t < a.tasks; t++)
    for (int64_t b = 0; b < a.B; b++)
      if (a.ids[b] == t) lists.order.push_back(b);
  a.order = lists.order.data();
  if (mask.has_value()) {
    const bool boolean = mask->scalar_type() == ScalarType::Bool;
    (boolean ? a.mask_bool : a.mask_float) =
        score_view(*mask, boolean ? ScalarType::Bool : ScalarType::Float, a, "mask (bool or float32)");
  }
  if (bias.has_value()) a.bias = score_view(*bias, ScalarType::Float, a, "position_bias (float32)");
  HFK_CHECK(form >= 0 && form <= 2, "prefix_attention: form: expected 0..2, got ", form);
  a.causal = causal, a.scaling = scaling, a.form = PrefixForm(form);
  a.dropout = dropout, a.seed = seed, a.dropout_on = dropout_on;
}

float* stats(const Tensor& t, int64_t count, const char* name) {
  HFK_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == count, "prefix_attention: ", name,
            ": expected ", count, " contiguous float32");
  return ptr_of<float>(t);
}

void forward(const Tensor& query, const Tensor& key, const Tensor& value, Tensors prefix_key, Tensors prefix_value,
             OptTensor ids, OptTensor mask, OptTensor bias, bool causal, double scaling, int64_t form, double dropout,
             std::optional<int64_t> seed, Tensor out, Tensor gate) {
  PrefixAttentionForwardArgs a = {};
  Lists lists;
  fill(a, lists, query, key, value, prefix_key, prefix_value, ids, mask, bias, causal, scaling, form, dropout,
       seed.value_or(0), seed.has_value());
  a.out = heads_view(out, query, a.B, a.H, a.Tq, a.D, "out");
  a.gate = stats(gate, a.B * a.H * a.Tq, "gate");
  if (a.B * a.Tq > 0 && a.D > 0) kernels().prefix_attention_forward(a);
}

void backward(const Tensor& grad_out, OptTensor grad_gate, const Tensor& query, const Tensor& key, const Tensor& value,
              Tensors prefix_key, Tensors prefix_value, OptTensor ids, OptTensor mask, OptTensor bias, bool causal,
              double scaling, int64_t form, double dropout, std::optional<int64_t> seed, OptTensor grad_query,
              OptTensor grad_key, OptTensor grad_value, OptTensor grad_scores, Tensors grad_prefix_key,
              Tensors grad_prefix_value) {
  PrefixAttentionBackwardArgs a = {};
  Lists lists;
  fill(a, lists, query, key, value, prefix_key, prefix_value, ids, mask, bias, causal, scaling, form, dropout,
       seed.value_or(0), seed.has_value());
  a.grad_out = heads_view(grad_out, query, a.B, a.H, a.Tq, a.D, "grad_out");
  if (grad_gate.has_value()) a.grad_gate = stats(*grad_gate, a.B * a.H * a.Tq, "grad_gate");
  if (grad_query.has_value()) a.grad_query = heads_view(*grad_query, query, a.B, a.H, a.Tq, a.D, "grad_query");
  HFK_CHECK(grad_key.has_value() == grad_value.has_value(), "prefix_attention: grad_key and grad_value come together");
  if (grad_key.has_value()) {
    a.grad_key = heads_view(*grad_key, query, a.B, a.G, a.Tk, a.D, "grad_key");
    a.grad_value = heads_view(*grad_value, query, a.B, a.G, a.Tk, a.D, "grad_value");
  }
  if (grad_scores.has_value()) a.grad_scores = stats(*grad_scores, a.B * a.H * a.Tq * a.Tk, "grad_scores");
  std::vector<void*> keys, values;
  HFK_CHECK(grad_prefix_key.size() == grad_prefix_value.size() &&
                (grad_prefix_key.empty() || int64_t(grad_prefix_key.size()) == a.tasks),
            "prefix_attention: prefix gradients: expected none or one a task");
  for (size_t t = 0; t < grad_prefix_key.size(); t++) {
    for (const Tensor* p : {&grad_prefix_key[t], &grad_prefix_value[t]})
      HFK_CHECK(p->is_contiguous() && p->numel() == a.G * lists.length[t] * a.D && p->scalar_type() == query.scalar_type(),
                "prefix_attention: prefix gradient ", t, ": expected the prefix's shape and dtype");
    keys.push_back(grad_prefix_key[t].data_ptr());
    values.push_back(grad_prefix_value[t].data_ptr());
  }
  if (!keys.empty()) a.grad_prefix_key = keys.data(), a.grad_prefix_value = values.data();
  std::vector<int64_t> unit_task, unit_start;
  for (int64_t i = 0, rows = 0; i < a.B; i++, rows++) {
    const int64_t task = a.ids[a.order[i]];
    if (i > 0 && task == unit_task.back() && rows < kPrefixUnitRows) continue;
    unit_task.push_back(task), unit_start.push_back(i), rows = 0;
  }
  unit_start.push_back(a.B);
  a.units = int64_t(unit_task.size());
  a.unit_task = unit_task.data(), a.unit_start = unit_start.data();
  kernels().prefix_attention_backward(a);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("prefix_attention_forward", TORCH_BOX(&hfk::forward));
  m.impl("prefix_attention_backward", TORCH_BOX(&hfk::backward));
}
