// parallel_adapter_norm: border to torch.
#include "args.h"

namespace hfk {
namespace {

const char* const kOp = "parallel_adapter_norm: ";

void check_like(const Tensor& t, const Tensor& like, int64_t size, const char* name) {
  HFK_CHECK(t.scalar_type() == like.scalar_type(), kOp, name, ": expected the dtype of x");
  HFK_CHECK(t.is_contiguous() && t.numel() == size, kOp, name, ": expected a contiguous tensor of ", size, " elements, got ",
            t.numel());
}
void check_like(const OptTensor& t, const Tensor& like, int64_t size, const char* name) {
  if (t.has_value()) check_like(*t, like, size, name);
}

void check_ids(const OptTensor& ids, int64_t rows, int64_t num_tasks) {
  if (!ids.has_value()) {
    HFK_CHECK(num_tasks == 1, kOp, "ids: expected one id a row for ", num_tasks, " tasks, got none");
    return;
  }
  HFK_CHECK(ids->scalar_type() == ScalarType::Long && ids->is_contiguous() && ids->dim() == 1, kOp,
            "ids: expected a contiguous int64 vector");
  const int64_t batch = ids->numel();
  HFK_CHECK(batch == 0 ? rows == 0 : rows % batch == 0, kOp, "ids: expected a divisor of ", rows, " rows, got ", batch);
  const int64_t bad = first_bad_id(ptr_of<const int64_t>(*ids), batch, num_tasks);
  HFK_CHECK(bad == batch, kOp, "ids[", bad, "]: expected -1..", num_tasks - 1, ", got ",
            ptr_of<const int64_t>(*ids)[imin(bad, imax(batch - 1, 0))]);
}

// Checks and collects what the forward and the backward share. `like` is x or its gradient, [rows, D].
struct Call {
  AdapterNormArgs args = {};
  std::vector<AdapterTask> tasks;
  std::optional<RowPlan> plan;

  Call(const Tensor& like, const Tensor& h, const std::vector<Tensor>& down, const std::vector<Tensor>& up,
       const std::vector<Tensor>& down_bias, const std::vector<Tensor>& up_bias, const std::vector<Tensor>& scale,
       const std::vector<double>& scale_values, const OptTensor& norm_weight, const OptTensor& norm_bias,
       const OptTensor& ids, const OptTensor& seed, int64_t activation, int64_t norm, double eps, double norm_offset,
       double dropout) {
    AdapterNormArgs& a = args;
    const size_t L = down.size();
    a.type = dtype_of(like, "parallel_adapter_norm: x");
    HFK_CHECK(like.dim() == 2 && h.dim() == 2 && like.size(0) == h.size(0), kOp, "x and h: expected [N, D], [N, Dh]");
    a.rows = like.size(0), a.D = like.size(1), a.Dh = h.size(1), a.num_tasks = int64_t(L);
    HFK_CHECK(a.rows < (int64_t(1) << 31), kOp, "x: expected fewer than 2^31 rows, got ", a.rows);
    check_like(h, like, a.rows * a.Dh, "h");
    HFK_CHECK(up.size() == L && (down_bias.empty() || down_bias.size() == L) && (up_bias.empty() || up_bias.size() == L),
              kOp, "up and biases: expected one tensor a task (", L, ")");
    HFK_CHECK(scale.empty() ? scale_values.size() == L : scale.size() == L, kOp, "scale: expected one a task (", L, ")");
    a.max_rank = 1;
    for (size_t t = 0; t < L; t++) {
      AdapterTask task = {};
      HFK_CHECK(down[t].dim() == 2 && down[t].size(1) == a.Dh, kOp, "down: expected [R, Dh]");
      task.rank = down[t].size(0);
      HFK_CHECK(task.rank >= 1, kOp, "down: expected a rank of at least 1");
      HFK_CHECK(up[t].dim() == 2 && up[t].size(0) == a.D, kOp, "up: expected [D, R]");
      HFK_CHECK((down_bias.empty() || down_bias[t].dim() == 1) && (up_bias.empty() || up_bias[t].dim() == 1), kOp,
                "biases: expected one axis");
      a.max_rank = imax(a.max_rank, task.rank);
      check_like(down[t], like, task.rank * a.Dh, "down");
      check_like(up[t], like, task.rank * a.D, "up");
      task.down = down[t].data_ptr(), task.up = up[t].data_ptr();
      if (!down_bias.empty()) {
        check_like(down_bias[t], like, task.rank, "down_bias");
        task.down_bias = down_bias[t].data_ptr();
      }
      if (!up_bias.empty()) {
        check_like(up_bias[t], like, a.D, "up_bias");
        task.up_bias = up_bias[t].data_ptr();
      }
      task.scale_value = scale.empty() ? float(scale_values[t]) : 0.f;
      if (!scale.empty()) {
        task.scale_size = scale[t].numel();
        check_like(scale[t], like, task.scale_size == 1 ? 1 : a.D, "scale");
        task.scale = scale[t].data_ptr();
      }
      tasks.push_back(task);
    }
    check_ids(ids, a.rows, a.num_tasks);
    check_like(norm_weight, like, a.D, "norm_weight");
    check_like(norm_bias, like, a.D, "norm_bias");
    HFK_CHECK(norm >= 0 && norm <= 2, kOp, "norm: expected 0..2, got ", norm);
    a.tasks = tasks.data();
    a.activation = int(activation), a.norm = Norm(norm), a.eps = float(eps), a.norm_offset = float(norm_offset);
    a.norm_weight = ptr_of<void>(norm_weight), a.norm_bias = ptr_of<void>(norm_bias);
    if (seed.has_value() && dropout > 0) {
      HFK_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, kOp, "seed: expected one int64");
      a.has_dropout = true, a.seed = *ptr_of<int64_t>(*seed), a.dropout = dropout;
    }
    a.h = h.data_ptr();
    int64_t block = 0;
    kernels().parallel_adapter_norm_block_rows({a.type, a.max_rank, &block});
    const int64_t batch = ids.has_value() ? ids->numel() : a.rows;
    plan.emplace(ptr_of<const int64_t>(ids), batch, batch ? a.rows / batch : 1, a.num_tasks, block);
    a.plan = &*plan;
  }
};

void check_saved(const AdapterNormArgs& a, const Tensor& like, const OptTensor& pre, const OptTensor& mean,
                 const OptTensor& rstd) {
  check_like(pre, like, a.rows * a.max_rank, "pre");
  check_f32(mean, a.rows, "parallel_adapter_norm: mean");
  check_f32(rstd, a.rows, "parallel_adapter_norm: rstd");
}

void forward(const Tensor& x, const OptTensor residual, const Tensor& h, std::vector<Tensor> down, std::vector<Tensor> up,
             std::vector<Tensor> down_bias, std::vector<Tensor> up_bias, std::vector<Tensor> scale,
             std::vector<double> scale_values, OptTensor norm_weight, OptTensor norm_bias, OptTensor ids, OptTensor seed,
             int64_t activation, int64_t norm, double eps, double norm_offset, double dropout, Tensor out, OptTensor z,
             OptTensor pre, OptTensor mean, OptTensor rstd) {
  Call call(x, h, down, up, down_bias, up_bias, scale, scale_values, norm_weight, norm_bias, ids, seed, activation, norm,
            eps, norm_offset, dropout);
  AdapterNormArgs& a = call.args;
  const int64_t size = a.rows * a.D;
  check_like(x, x, size, "x");
  check_like(residual, x, size, "residual");
  check_like(out, x, size, "out");
  check_like(z, x, size, "z");
  check_saved(a, x, pre, mean, rstd);
  HFK_CHECK(!rstd.has_value() || a.norm != Norm::layer || mean.has_value(), kOp, "mean: missing for a layer norm");
  a.x = x.data_ptr(), a.residual = ptr_of<void>(residual), a.out = out.data_ptr();
  a.z = ptr_of<void>(z), a.pre = ptr_of<void>(pre), a.mean = ptr_of<float>(mean), a.rstd = ptr_of<float>(rstd);
  if (size > 0) kernels().parallel_adapter_norm_forward(a);
}

// grads: for each task down, up, down_bias, up_bias, scale (a tensor without elements: not wanted), then the norm's
// weight and bias.
void backward(const Tensor& dout, OptTensor z, const Tensor& pre, OptTensor mean, OptTensor rstd, const Tensor& h,
              std::vector<Tensor> down, std::vector<Tensor> up, std::vector<Tensor> up_bias, std::vector<Tensor> scale,
              std::vector<double> scale_values, OptTensor norm_weight, OptTensor ids, OptTensor seed, int64_t activation,
              int64_t norm, double norm_offset, double dropout, OptTensor dz, OptTensor dh, std::vector<Tensor> grads) {
  Call call(dout, h, down, up, {}, up_bias, scale, scale_values, norm_weight, std::nullopt, ids, seed, activation, norm, 0.0,
            norm_offset, dropout);
  AdapterNormBackwardArgs g = {};
  AdapterNormArgs& a = call.args;
  const int64_t size = a.rows * a.D;
  check_like(dout, dout, size, "gradient of out");
  check_like(z, dout, size, "z");
  check_like(dz, dout, size, "dz");
  check_like(dh, dout, a.rows * a.Dh, "dh");
  check_saved(a, dout, pre, mean, rstd);
  HFK_CHECK(pre.numel() == a.rows * a.max_rank, kOp, "pre: not saved");
  HFK_CHECK(a.norm == Norm::none ||
                (z.has_value() && dz.has_value() && rstd.has_value() && (a.norm == Norm::rms || mean.has_value())),
            kOp, "z, dz, mean, rstd: missing for this norm");
  const size_t L = call.tasks.size();
  HFK_CHECK(grads.size() == 5 * L + 2, kOp, "grads: expected ", 5 * L + 2, ", got ", grads.size());
  auto wanted = [&](size_t i, int64_t expected, const char* name) -> void* {
    if (grads[i].numel() == 0) return nullptr;
    check_like(grads[i], dout, expected, name);
    return grads[i].data_ptr();
  };
  std::vector<AdapterGrads> outputs;
  for (size_t t = 0; t < L; t++) {
    const int64_t rank = call.tasks[t].rank;
    outputs.push_back({wanted(5 * t, rank * a.Dh, "gradient of down"), wanted(5 * t + 1, rank * a.D, "gradient of up"),
                       wanted(5 * t + 2, rank, "gradient of down_bias"), wanted(5 * t + 3, a.D, "gradient of up_bias"),
                       wanted(5 * t + 4, call.tasks[t].scale_size, "gradient of scale")});
  }
  g.grads = outputs.data();
  g.dnorm_weight = wanted(5 * L, a.D, "gradient of norm_weight");
  g.dnorm_bias = wanted(5 * L + 1, a.D, "gradient of norm_bias");
  a.z = ptr_of<void>(z), a.pre = pre.data_ptr(), a.mean = ptr_of<float>(mean), a.rstd = ptr_of<float>(rstd);
  g.dout = dout.data_ptr(), g.dz = ptr_of<void>(dz), g.dh = ptr_of<void>(dh);
  g.forward = a;
  kernels().parallel_adapter_norm_backward(g);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("parallel_adapter_norm_forward", TORCH_BOX(&hfk::forward));
  m.impl("parallel_adapter_norm_backward", TORCH_BOX(&hfk::backward));
}
