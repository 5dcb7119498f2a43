// int8 products as AVX-512 and AMX lay them out, on any processor: vectors of 16 numbers in plain C++, and the tile
// instructions written out. What is left untried without the machine is the instruction vpdpbusd alone.
#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#undef _tile_loadconfig
#define _tile_loadconfig emulated_loadconfig
#undef _tile_storeconfig
#define _tile_storeconfig emulated_storeconfig
#undef _tile_release
#define _tile_release emulated_release
#undef _tile_zero
#define _tile_zero emulated_zero
#undef _tile_loadd
#define _tile_loadd emulated_loadd
#undef _tile_stored
#define _tile_stored emulated_stored
#undef _tile_dpbssd
#define _tile_dpbssd emulated_dpbssd
#undef _tile_dpbf16ps
#define _tile_dpbf16ps emulated_dpbf16ps
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1

static uint8_t tiles[8][16][64];
static void emulated_loadconfig(const void*) {}
static void emulated_storeconfig(void* config) { std::memset(config, 0, 64); }
static void emulated_release() {}
static void emulated_zero(int t) { std::memset(tiles[t], 0, sizeof(tiles[t])); }
static void emulated_loadd(int t, const void* p, int64_t stride) {
  for (int i = 0; i < 16; i++) std::memcpy(tiles[t][i], static_cast<const char*>(p) + i * stride, 64);
}
static void emulated_stored(int t, void* p, int64_t stride) {
  for (int i = 0; i < 16; i++) std::memcpy(static_cast<char*>(p) + i * stride, tiles[t][i], 64);
}
// Intel's manual: dword n of row m of the result gets, for each dword k of row m of a, the products of its four signed
// bytes with those of dword n of row k of b.
static void emulated_dpbssd(int c, int a, int b) {
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 16; n++) {
      int32_t sum;
      std::memcpy(&sum, &tiles[c][m][4 * n], 4);
      for (int k = 0; k < 16; k++)
        for (int i = 0; i < 4; i++) sum += int8_t(tiles[a][m][4 * k + i]) * int8_t(tiles[b][k][4 * n + i]);
      std::memcpy(&tiles[c][m][4 * n], &sum, 4);
    }
}
static void emulated_dpbf16ps(int, int, int) { std::abort(); }

#define HFK_NAMESPACE emulated
#define HFK_VECTOR_LENGTH 16
#include "../../../csrc/ops/frozen_linear/int8.h"

namespace hfk {

static int64_t threads = 1;
void parallel_run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  for (int64_t i = 0; i < n; i++) body(context, i, i + 1);
}
int64_t num_threads() { return threads; }
// Filled with what must not matter.
static void* fresh(size_t bytes) {
  void* p = std::malloc(bytes + 1);
  std::memset(p, 0x7f, bytes);
  return p;
}
void* scratch_bytes(int slot, size_t bytes) {
  static void* memory[8] = {};
  std::free(memory[slot]);
  return memory[slot] = fresh(bytes);
}
void* shared_alloc(size_t bytes) { return fresh(bytes); }
void shared_free(void* p) { std::free(p); }

static int64_t check(int64_t M, int64_t N, int64_t K) {
  const int64_t Kp = round_up(K, 64), outputs = round_up(N, 16);
  std::vector<float> x(size_t(M * K)), scale(size_t(N), 0.5f), bias(size_t(N), 3.f), out(size_t(M * N), -1.f);
  std::vector<char> panels(size_t(outputs * Kp), 0);
  std::vector<int32_t> sums(size_t(outputs), 0);
  std::vector<int> weight(size_t(N * K));
  // Each row's largest number is 127, so that the numbers are the int8 that they are rounded to.
  for (int64_t i = 0; i < M * K; i++) x[size_t(i)] = i % K == 0 ? 127.f : float((i * 7919) % 255 - 127);
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) {
      const int w = weight[size_t(n * K + k)] = int((n * 104729 + k * 31) % 255) - 127;
      panels[size_t(n / 16 * Kp * 16 + k / 4 * 64 + n % 16 * 4 + k % 4)] = char(w);
      sums[size_t(n)] += w;
    }
  int64_t wrong = 0;
  for (Int8Way way : {kInt8Pairs, kInt8Bytes, kInt8Tiles})
    for (threads = 1; threads <= 3; threads += 2) {
      Int8LinearArgs a = {};
      a.type = DType::f32, a.x = x.data(), a.out = out.data(), a.M = M, a.N = N, a.K = K, a.x_stride = K, a.way = way;
      a.panels = panels.data(), a.sums = sums.data(), a.scale = scale.data(), a.bias = bias.data();
      emulated::int8_linear_forward(a);
      for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
          int64_t sum = 0;
          for (int64_t k = 0; k < K; k++) sum += int64_t(x[size_t(m * K + k)]) * weight[size_t(n * K + k)];
          wrong += out[size_t(m * N + n)] != float(sum) * 0.5f + 3.f;
        }
    }
  std::printf("%ld x %ld x %ld: %ld wrong\n", long(M), long(N), long(K), long(wrong));
  return wrong;
}

}  // namespace hfk

int main() {
  int64_t wrong = 0;
  for (int64_t M : {1, 16, 17, 33, 130})
    for (int64_t N : {1, 16, 40, 97}) wrong += hfk::check(M, N, M % 2 ? 130 : 1601);
  return wrong != 0;
}
