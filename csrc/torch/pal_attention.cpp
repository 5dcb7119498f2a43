// pal_attention: border to torch.
#include "args.h"

namespace hfk {
namespace {

struct PalPlan {
  std::vector<int64_t> sequence_task;
  std::vector<PalTask> tasks;
  std::vector<PalTile> tiles;
  std::vector<PalChunk> chunks;
  PalArgs args = {};
};

void check_matrix(const Tensor& t, int64_t rows, int64_t columns, DType type, const char* name) {
  HFK_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && dtype_of(t, name) == type, name, ": expected [",
            rows, ", ", columns, "] of x's dtype");
}
void check_flat(const Tensor& t, int64_t count, DType type, const char* name) {
  HFK_CHECK(t.numel() == count && t.is_contiguous() && dtype_of(t, name) == type, name, ": expected ", count,
            " contiguous elements of x's dtype, got ", t.numel());
}

void read_weights(PalPlan& plan, const std::vector<Tensor>& weights, const std::vector<int64_t>& present,
                  const std::vector<Tensor>& grads) {
  PalArgs& a = plan.args;
  size_t at = 0;
  for (int f = 0; f < kPalFamilies; f++) {
    HFK_CHECK(f > kPalDecoder || present[size_t(f)], "pal_attention: weights: family ", f, " is missing");
    if (!present[size_t(f)]) continue;
    for (PalTask& task : plan.tasks) {
      const Tensor& w = weights[at];
      const int m = f % kPalMatrices;
      const int64_t out = m == kPalDecoder ? a.D : a.S, in = m == kPalEncoder ? a.D : a.S;
      if (f < kPalMatrices) {
        check_matrix(w, out, in, a.type, "pal_attention: weight");
        task.column_stride[f] = w.stride(1);
      } else {
        HFK_CHECK(w.dim() == 1 && w.size(0) == out && dtype_of(w, "pal_attention: bias") == a.type,
                  "pal_attention: bias: expected [", out, "] of x's dtype");
      }
      task.weight[f] = w.data_ptr(), task.row_stride[f] = w.stride(0);
      if (!grads.empty() && grads[at].numel() > 0) {
        check_flat(grads[at], w.numel(), a.type, "pal_attention: gradient");
        task.grad[f] = grads[at].data_ptr();
      }
      at++;
    }
  }
}

// What forward and backward have in common. x is [B * T, D].
void read(PalPlan& plan, const Tensor& x, int64_t B, const std::vector<Tensor>& weights, const std::vector<int64_t>& present,
          const OptTensor& ids, const OptTensor& mask, int64_t heads, bool causal, int64_t activation, double dropout,
          const OptTensor& seed, const std::vector<Tensor>& grads) {
  PalArgs& a = plan.args;
  a.type = dtype_of(x, "pal_attention: x");
  HFK_CHECK(x.dim() == 2 && (x.size(1) <= 1 || x.stride(1) == 1) && B > 0 && x.size(0) % B == 0,
            "pal_attention: x: expected [B * T, D] with stride 1 on the last axis");
  a.B = B, a.T = x.size(0) / B, a.D = x.size(1), a.x = x.data_ptr(), a.x_stride = x.stride(0);
  int64_t families = 0;
  HFK_CHECK(present.size() == size_t(kPalFamilies), "pal_attention: present: expected 12 flags");
  for (int64_t p : present) families += p != 0;
  HFK_CHECK(families > 0 && !weights.empty() && int64_t(weights.size()) % families == 0, "pal_attention: weights");
  HFK_CHECK(grads.empty() || grads.size() == weights.size(), "pal_attention: gradients: expected one a weight");
  plan.tasks.resize(weights.size() / size_t(families), PalTask{});
  a.tasks = int64_t(plan.tasks.size()), a.task = plan.tasks.data();
  a.S = weights[0].size(0), a.Sp = round_up(a.S, 32), a.heads = heads;
  HFK_CHECK(heads > 0 && a.S > 0 && a.S % heads == 0, "pal_attention: heads: expected a divisor of ", a.S);
  read_weights(plan, weights, present, grads);
  plan.sequence_task.assign(size_t(B), 0);
  if (ids.has_value()) {
    HFK_CHECK(ids->scalar_type() == ScalarType::Long && ids->is_contiguous() && ids->numel() == B,
              "pal_attention: ids: expected int64 [", B, "]");
    const int64_t* id = ptr_of<int64_t>(*ids);
    for (int64_t b = 0; b < B; b++) {
      HFK_CHECK(id[b] >= -1 && id[b] < a.tasks, "pal_attention: ids[", b, "] is out of range: expected -1..", a.tasks - 1,
                ", got ", id[b]);
      plan.sequence_task[size_t(b)] = id[b];
    }
  }
  a.sequence_task = plan.sequence_task.data();
  a.pieces = present[kPalOutput] ? 6 : 5;
  // Chunks end where the task ends, or where every thread has some.
  const int64_t most = imax(kPalTileRows, imin(kPalChunkRows, ceil_div(B * a.T, 2 * num_threads())));
  for (int64_t t = 0; t < a.tasks; t++) {
    int64_t rows = most;
    for (int64_t b = 0; b < B; b++)
      for (int64_t i = 0; plan.sequence_task[size_t(b)] == t && i < a.T; i += kPalTileRows) {
        const int64_t here = imin(kPalTileRows, a.T - i), tile = int64_t(plan.tiles.size());
        plan.tiles.push_back({int32_t(t), int32_t(here), b * a.T + i});
        if (rows + here > most) plan.chunks.push_back({t, tile, tile}), rows = 0;
        rows += here;
        plan.chunks.back().last = tile + 1;
      }
  }
  a.tile = plan.tiles.data(), a.chunk = plan.chunks.data(), a.chunks = int64_t(plan.chunks.size());
  if (mask.has_value()) {
    HFK_CHECK(mask->scalar_type() == ScalarType::Float && mask->is_contiguous() && mask->dim() == 3 &&
                  (mask->size(0) == 1 || mask->size(0) == B) && (mask->size(1) == 1 || mask->size(1) == a.T) &&
                  mask->size(2) == a.T,
              "pal_attention: mask: expected contiguous float32 [B or 1, T or 1, T]");
    a.mask = ptr_of<float>(*mask);
    a.mask_b = mask->size(0) == 1 ? 0 : mask->size(1) * a.T;
    a.mask_i = mask->size(1) == 1 ? 0 : a.T;
  }
  a.causal = causal, a.activation = int(activation);
  if (seed.has_value() && dropout > 0) {
    HFK_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "pal_attention: seed: expected int64 [1]");
    a.dropout = dropout, a.seed = *ptr_of<int64_t>(*seed);
  }
}

void forward(const Tensor& x, int64_t B, std::vector<Tensor> weights, std::vector<int64_t> present, OptTensor ids,
             OptTensor mask, int64_t heads, bool causal, int64_t activation, double dropout, OptTensor seed, Tensor out,
             Tensor hidden, Tensor pre) {
  PalPlan plan;
  read(plan, x, B, weights, present, ids, mask, heads, causal, activation, dropout, seed, {});
  PalArgs& a = plan.args;
  check_flat(out, a.B * a.T * a.D, a.type, "pal_attention: out");
  // The rank rows pass through memory also when no backward will read them.
  const int64_t rank_rows = a.pieces * a.B * a.T * a.Sp;
  const bool keep = hidden.numel() > 0;
  if (keep) check_flat(hidden, rank_rows, a.type, "pal_attention: hidden");
  Shared<char> workspace(keep ? 0 : rank_rows * (a.type == DType::f32 ? 4 : 2));
  a.out = out.data_ptr(), a.hidden = keep ? hidden.data_ptr() : workspace.data;
  if (pre.numel() > 0) {
    check_flat(pre, a.B * a.T * a.D, a.type, "pal_attention: pre");
    a.slope = pre.data_ptr();
  }
  if (a.T > 0 && a.D > 0) kernels().pal_attention_forward(a);
}

void backward(const Tensor& grad, const Tensor& x, int64_t B, std::vector<Tensor> weights, std::vector<int64_t> present,
              OptTensor ids, OptTensor mask, int64_t heads, bool causal, int64_t activation, double dropout, OptTensor seed,
              const Tensor& hidden, const Tensor& pre, Tensor dx, std::vector<Tensor> grads) {
  PalPlan plan;
  read(plan, x, B, weights, present, ids, mask, heads, causal, activation, dropout, seed, grads);
  PalArgs& a = plan.args;
  check_matrix(grad, a.B * a.T, a.D, a.type, "pal_attention: grad");
  HFK_CHECK(a.D <= 1 || grad.stride(1) == 1, "pal_attention: grad: expected stride 1 on the last axis");
  a.grad = grad.data_ptr(), a.grad_stride = grad.stride(0);
  check_flat(hidden, a.pieces * a.B * a.T * a.Sp, a.type, "pal_attention: hidden");
  a.hidden = hidden.data_ptr();
  if (activation != 0) {
    check_flat(pre, a.B * a.T * a.D, a.type, "pal_attention: pre");
    a.slope = pre.data_ptr();
  }
  if (dx.numel() > 0) {
    check_flat(dx, a.B * a.T * a.D, a.type, "pal_attention: dx");
    a.dx = dx.data_ptr();
  }
  if (a.T > 0 && a.D > 0) kernels().pal_attention_backward(a);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("pal_attention_forward", TORCH_BOX(&hfk::forward));
  m.impl("pal_attention_backward", TORCH_BOX(&hfk::backward));
}
