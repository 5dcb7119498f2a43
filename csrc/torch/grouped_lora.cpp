// grouped_lora: border to torch. Sorts the rows by task and cuts them into tiles.
#include "args.h"

namespace hfk {
namespace {

// The rows of every task, and tiles of them. `repeats` rows of x stand behind each id.
struct Plan {
  std::vector<int32_t> order, idle;
  std::vector<LoraTask> tasks;
  std::vector<LoraTile> tiles;

  void sort(const OptTensor& ids, int64_t rows) {
    const int64_t count = int64_t(tasks.size());
    if (!ids.has_value()) {
      HFK_CHECK(count == 1, "grouped_lora: ids: expected some for ", count, " tasks");
      order.resize(size_t(rows));
      for (int64_t i = 0; i < rows; i++) order[size_t(i)] = int32_t(i);
      tasks[0].count = rows;
      return;
    }
    HFK_CHECK(ids->scalar_type() == ScalarType::Long && ids->dim() == 1 && ids->is_contiguous(),
              "grouped_lora: ids: expected contiguous int64 [B]");
    const int64_t B = ids->size(0), repeats = B > 0 ? rows / B : 0;
    HFK_CHECK(B * repeats == rows, "grouped_lora: ids: expected a divisor of ", rows, " rows, got ", B);
    const int64_t* id = ptr_of<int64_t>(*ids);
    for (int64_t b = 0; b < B; b++) {
      HFK_CHECK(id[b] >= -1 && id[b] < count, "grouped_lora: ids[", b, "] is out of range: expected -1..", count - 1,
                ", got ", id[b]);
      if (id[b] >= 0) tasks[size_t(id[b])].count += repeats;
    }
    int64_t start = 0;
    for (LoraTask& t : tasks) t.start = start, start += t.count;
    order.resize(size_t(start));
    std::vector<int64_t> next;
    for (const LoraTask& t : tasks) next.push_back(t.start);
    for (int64_t b = 0; b < B; b++)
      for (int64_t i = b * repeats; i < (b + 1) * repeats; i++)
        if (id[b] >= 0)
          order[size_t(next[size_t(id[b])]++)] = int32_t(i);
        else
          idle.push_back(int32_t(i));
  }

  // Long runs of neighbouring rows become tiles that are read in place; short ones are gathered together.
  void cut() {
    for (size_t t = 0; t < tasks.size(); t++) {
      const int64_t end = tasks[t].start + tasks[t].count;
      for (int64_t i = tasks[t].start; i < end;) {
        int64_t run = 1;
        while (i + run < end && order[size_t(i + run)] == order[size_t(i)] + run) run++;
        if (run >= 32) {
          const int64_t pieces = ceil_div(run, kLoraTileRows), each = round_up(ceil_div(run, pieces), 16);
          for (int64_t done = 0; done < run; done += each)
            tiles.push_back({int32_t(t), int32_t(i + done), int32_t(imin(each, run - done)), 1});
          i += run;
        } else {
          const int64_t rows = imin(kLoraTileRows, end - i);
          tiles.push_back({int32_t(t), int32_t(i), int32_t(rows), rows == run});
          i += rows;
        }
      }
    }
  }
};

void check_rows(const Tensor& t, int64_t rows, int64_t columns, DType type, const char* name) {
  HFK_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && dtype_of(t, name) == type &&
                (columns <= 1 || t.stride(1) == 1),
            name, ": expected [", rows, ", ", columns, "] of x's dtype with stride 1 on the last axis");
}

// [..., C] as [rows, C] with neighbouring columns: in place where memory allows it, else a copy.
struct Rows {
  Tensor kept;
  int64_t count = 1, columns, stride;

  Rows(const Tensor& given, const char* name) : kept(given) {
    const int64_t axes = given.dim();
    HFK_CHECK(axes >= 2, name, ": expected 2 axes or more");
    columns = given.size(axes - 1);
    stride = imax(columns, 1);
    bool plain = columns <= 1 || given.stride(axes - 1) == 1;
    for (int64_t i = axes - 2; i >= 0; i--) {
      const int64_t size = given.size(i), step = given.stride(i);
      if (size > 1 && count == 1) stride = step;  // strides of axes of one element say nothing
      plain &= size <= 1 || step == stride * count;
      count *= size;
    }
    if (!plain || stride < columns) kept = torch::stable::contiguous(given), stride = imax(columns, 1);
  }
};

void check_flat(const Tensor& t, int64_t count, DType type, const char* name) {
  HFK_CHECK(t.numel() == count && t.is_contiguous() && dtype_of(t, name) == type, name, ": expected ", count,
            " contiguous elements of x's dtype, got ", t.numel());
}

// What forward and backward have in common.
LoraArgs read(const Rows& x, const std::vector<Tensor>& a, const std::vector<Tensor>& b, const Tensor& scale,
              const OptTensor& ids, double dropout, const OptTensor& seed, Plan& plan) {
  LoraArgs args = {};
  args.type = dtype_of(x.kept, "grouped_lora: x");
  args.Din = x.columns, args.tasks = int64_t(a.size());
  HFK_CHECK(args.tasks > 0 && b.size() == a.size() && x.count < (int64_t(1) << 31), "grouped_lora: tasks or rows");
  check_f32(scale, args.tasks, "grouped_lora: scale");
  args.O = b[0].size(0);
  plan.tasks.resize(a.size());
  for (size_t t = 0; t < a.size(); t++) {
    HFK_CHECK(a[t].dim() == 2 && b[t].dim() == 2 && a[t].size(1) == args.Din && b[t].size(0) == args.O &&
                  b[t].size(1) == a[t].size(0) && a[t].size(0) > 0 && dtype_of(a[t], "grouped_lora: a") == args.type &&
                  dtype_of(b[t], "grouped_lora: b") == args.type,
              "grouped_lora: a[", t, "] and b[", t, "]: expected [R, ", args.Din, "] and [", args.O, ", R]");
    LoraTask& w = plan.tasks[t];
    w = {};
    w.a = a[t].data_ptr(), w.b = b[t].data_ptr(), w.R = a[t].size(0);
    w.a_sr = a[t].stride(0), w.a_sk = a[t].stride(1), w.b_so = b[t].stride(0), w.b_sr = b[t].stride(1);
    w.scale = ptr_of<float>(scale)[t];
    args.max_rank = imax(args.max_rank, w.R);
  }
  plan.sort(ids, x.count);
  plan.cut();
  args.task = plan.tasks.data(), args.tile = plan.tiles.data(), args.tiles = int64_t(plan.tiles.size());
  args.order = plan.order.data(), args.active = int64_t(plan.order.size());
  args.idle_rows = plan.idle.data(), args.idle = int64_t(plan.idle.size());
  args.x = x.kept.data_ptr(), args.x_stride = x.stride;
  if (seed.has_value() && dropout > 0) {
    HFK_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "grouped_lora: seed: expected int64 [1]");
    args.dropout = dropout, args.seed = *ptr_of<int64_t>(*seed);
  }
  return args;
}

void forward(const Tensor& x, OptTensor y, std::vector<Tensor> a, std::vector<Tensor> b, const Tensor& scale, OptTensor ids,
             double dropout, OptTensor seed, Tensor out, Tensor low) {
  Plan plan;
  const Rows x_rows(x, "grouped_lora: x");
  LoraArgs args = read(x_rows, a, b, scale, ids, dropout, seed, plan);
  const int64_t rows = x_rows.count;
  check_flat(out, rows * args.O, args.type, "grouped_lora: out");
  args.out = out.data_ptr();
  if (y.has_value()) {
    check_rows(*y, rows, args.O, args.type, "grouped_lora: y");
    args.y = y->data_ptr(), args.y_stride = y->stride(0);
    HFK_CHECK(args.y != args.out || args.y_stride == args.O, "grouped_lora: y in place: expected contiguous rows");
  }
  if (low.numel() > 0) {
    check_flat(low, rows * args.max_rank, args.type, "grouped_lora: low");
    args.low = low.data_ptr(), args.low_stride = args.max_rank;
  }
  if (rows > 0 && args.O > 0 && args.Din > 0) kernels().grouped_lora_forward(args);
}

// y plus the update, in a result of its own: what inference asks for, without the calls of Python's that bring rows into
// shape and make the result. They take longer than a small op, since the products before have emptied the caches.
Tensor add(const Tensor& x, const Tensor& y, std::vector<Tensor> a, std::vector<Tensor> b, const Tensor& scale,
           OptTensor ids) {
  const int64_t axes = y.dim();
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < axes; i++) shape.push_back(y.size(i));
  HFK_CHECK(x.dim() == axes && y.scalar_type() == x.scalar_type(), "grouped_lora: y: expected axes and dtype of x");
  for (int64_t i = 0; i + 1 < axes; i++)
    HFK_CHECK(x.size(i) == shape[size_t(i)], "grouped_lora: y: expected the leading sizes of x");
  const Rows x_rows(x, "grouped_lora: x"), y_rows(y, "grouped_lora: y");
  Plan plan;
  LoraArgs args = read(x_rows, a, b, scale, ids, 0.0, std::nullopt, plan);
  HFK_CHECK(y_rows.columns == args.O && args.O > 0 && args.Din > 0 && y_rows.count > 0, "grouped_lora: y: expected [.., ",
            args.O, "] with an element or more");
  Tensor out = empty_result(y, shape);
  args.out = out.data_ptr(), args.y = y_rows.kept.data_ptr(), args.y_stride = y_rows.stride;
  kernels().grouped_lora_forward(args);
  return out;
}

void backward(const Tensor& grad, const Tensor& x, const Tensor& low, std::vector<Tensor> a, std::vector<Tensor> b,
              const Tensor& scale, OptTensor ids, double dropout, OptTensor seed, bool add_to_dx, Tensor dx,
              std::vector<Tensor> da, std::vector<Tensor> db, Tensor dscale) {
  Plan plan;
  const Rows x_rows(x, "grouped_lora: x");
  LoraArgs args = read(x_rows, a, b, scale, ids, dropout, seed, plan);
  const int64_t rows = x_rows.count;
  check_rows(grad, rows, args.O, args.type, "grouped_lora: grad");
  check_flat(low, rows * args.max_rank, args.type, "grouped_lora: low");
  args.grad = grad.data_ptr(), args.grad_stride = grad.stride(0);
  args.low = low.data_ptr(), args.low_stride = args.max_rank, args.add_to_dx = add_to_dx;
  if (dx.numel() > 0) {
    check_flat(dx, rows * args.Din, args.type, "grouped_lora: dx");
    args.dx = dx.data_ptr();
  }
  if (dscale.numel() > 0) {
    check_f32(dscale, args.tasks, "grouped_lora: dscale");
    args.dscale = ptr_of<float>(dscale);
  }
  for (size_t t = 0; t < a.size(); t++) {
    if (da[t].numel() > 0)
      check_flat(da[t], a[t].numel(), args.type, "grouped_lora: da"), plan.tasks[t].da = da[t].data_ptr();
    if (db[t].numel() > 0)
      check_flat(db[t], b[t].numel(), args.type, "grouped_lora: db"), plan.tasks[t].db = db[t].data_ptr();
  }
  if (args.O > 0 && args.Din > 0) kernels().grouped_lora_backward(args);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("grouped_lora_add", TORCH_BOX(&hfk::add));
  m.impl("grouped_lora_forward", TORCH_BOX(&hfk::forward));
  m.impl("grouped_lora_backward", TORCH_BOX(&hfk::backward));
}
