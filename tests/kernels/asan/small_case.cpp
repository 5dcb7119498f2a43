// One small case of two ops on exactly sized heap blocks, without torch, for valgrind (tools/asan_kernels.sh).
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../../csrc/isa/dispatch.h"

namespace hfk {

void parallel_run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  for (int64_t i = 0; i < n; i++) body(context, i, i + 1);
}
int64_t num_threads() { return 2; }
// A fresh block each time: valgrind sees every byte that is read before it is written.
void* scratch_bytes(int slot, size_t bytes) {
  static void* memory[16] = {};
  std::free(memory[slot]);
  return memory[slot] = std::malloc(bytes);
}
void* shared_alloc(size_t bytes) { return std::malloc(bytes); }
void shared_free(void* p) { std::free(p); }

namespace avx2 {
extern const Kernels table;
}

static std::vector<float> numbers(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) v[size_t(i)] = float((i * 7919) % 1000) * 0.002f - 1.f;
  return v;
}

static double total(const std::vector<float>& v) {
  double sum = 0;
  for (float x : v) sum += x;
  if (sum != sum) std::abort();
  return sum;
}

static double adapter_norm() {
  const int64_t B = 3, T = 5, D = 37, Dh = 29, ranks[2] = {3, 21}, N = B * T;
  const int64_t ids[3] = {1, -1, 0};
  auto x = numbers(N * D), h = numbers(N * Dh), dout = numbers(N * D), gamma = numbers(D);
  std::vector<float> out(N * D), z(N * D), pre(N * 21), mean(N), rstd(N), dz(N * D), dh(N * Dh), dgamma(D), dbeta(D);
  std::vector<std::vector<float>> keep;
  std::vector<AdapterTask> tasks;
  std::vector<AdapterGrads> grads;
  keep.reserve(16);
  for (int64_t rank : ranks) {
    keep.push_back(numbers(rank * Dh));
    keep.push_back(numbers(D * rank));
    AdapterTask task = {};
    task.down = keep[keep.size() - 2].data(), task.up = keep.back().data(), task.scale_value = 0.5f, task.rank = rank;
    tasks.push_back(task);
    keep.emplace_back(rank * Dh);
    keep.emplace_back(D * rank);
    grads.push_back({keep[keep.size() - 2].data(), keep.back().data(), nullptr, nullptr, nullptr});
  }
  AdapterNormArgs a = {};
  int64_t block = 0;
  a.type = DType::f32, a.max_rank = 21;
  avx2::table.parallel_adapter_norm_block_rows({a.type, a.max_rank, &block});
  RowPlan plan(ids, B, T, 2, block);
  a.plan = &plan, a.tasks = tasks.data(), a.num_tasks = 2, a.rows = N, a.D = D, a.Dh = Dh, a.activation = 2;
  a.norm = Norm::layer, a.eps = 1e-5f, a.norm_weight = gamma.data(), a.has_dropout = true, a.seed = 5, a.dropout = 0.25;
  a.x = x.data(), a.h = h.data(), a.out = out.data(), a.z = z.data(), a.pre = pre.data(), a.mean = mean.data();
  a.rstd = rstd.data();
  avx2::table.parallel_adapter_norm_forward(a);
  AdapterNormBackwardArgs g = {};
  g.forward = a, g.dout = dout.data(), g.dz = dz.data(), g.dh = dh.data(), g.grads = grads.data();
  g.dnorm_weight = dgamma.data(), g.dnorm_bias = dbeta.data();
  avx2::table.parallel_adapter_norm_backward(g);
  double sum = total(out) + total(dz) + total(dh) + total(dgamma) + total(dbeta);
  for (const auto& v : keep) sum += total(v);
  return sum;
}

static double frozen_linear() {
  const int64_t M = 7, K = 19, N = 35;
  auto x = numbers(M * K), w = numbers(N * K), bias = numbers(N);
  std::vector<float> out(M * N);
  int64_t bytes = 0;
  avx2::table.frozen_linear_size({WeightType::f32, K, N, &bytes});
  std::vector<char> packed(static_cast<size_t>(bytes));
  LinearPackArgs p = {};
  p.type = DType::f32, p.weight = w.data(), p.K = K, p.N = N, p.sk = 1, p.sn = K, p.packed = packed.data();
  avx2::table.frozen_linear_pack(p);
  LinearArgs a = {};
  a.type = DType::f32, a.x = x.data(), a.out = out.data(), a.M = M, a.N = N, a.K = K, a.x_stride = K;
  a.packed = packed.data(), a.bias = bias.data(), a.activation = 4;
  avx2::table.frozen_linear_forward(a);
  return total(out);
}

}  // namespace hfk

int main() {
  std::printf("ok %g %g\n", hfk::adapter_norm(), hfk::frozen_linear());
  return 0;
}
