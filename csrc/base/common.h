// What every file may use: element types, the thread pool, scratch memory. No instruction-set specific code and no
// std containers: this header is compiled into every instruction-set file, and an inline function emitted there with
// AVX-512 could be the copy that the linker keeps for all.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define HFK_INLINE inline __attribute__((always_inline))

namespace hfk {

enum class DType : int32_t { f32 = 0, bf16 = 1 };

struct bf16 {
  uint16_t bits;
};

static HFK_INLINE int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
static HFK_INLINE int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
static HFK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static HFK_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

static HFK_INLINE float to_float(float x) { return x; }
static HFK_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static HFK_INLINE void from_float(float x, float& out) { out = x; }
static HFK_INLINE void from_float(float x, bf16& out) {
  uint32_t u;
  memcpy(&u, &x, 4);
  // Round to nearest even; NaN stays NaN instead of rounding up into infinity.
  out.bits = (x != x) ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Runs body(context, begin, end) over [0, n) on torch's own thread pool (runtime.cpp).
void parallel_run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context);
int64_t num_threads();

// Work items are claimed in ranges; results must not depend on how [0, n) is cut.
template <class F>
static HFK_INLINE void parallel(int64_t n, F&& f) {
  if (n <= 0) return;
  if (n == 1) {
    f(int64_t(0), int64_t(1));
    return;
  }
  parallel_run(n, [](void* c, int64_t b, int64_t e) { (*static_cast<__typeof__(&f)>(c))(b, e); }, &f);
}

// 64-byte aligned memory of the calling thread, kept for the next call; slots are independent. Contents are garbage
// (NaN with HFADAPT_POISON=1).
// A slot above 64 MiB is given back once far less is asked for.
void* scratch_bytes(int slot, size_t bytes);
template <class T>
static HFK_INLINE T* scratch(int slot, int64_t count) {
  return static_cast<T*>(scratch_bytes(slot, size_t(count) * sizeof(T)));
}

// Memory shared by the threads of one op call, given back at the end of scope, or of one large result. Blocks up to 256 MiB
// in all are kept for later calls. Same poison rule.
void* shared_alloc(size_t bytes);
void shared_free(void* p);
template <class T>
struct Shared {
  T* data;
  explicit Shared(int64_t count) : data(count > 0 ? static_cast<T*>(shared_alloc(size_t(count) * sizeof(T))) : nullptr) {}
  ~Shared() { shared_free(data); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  operator T*() const { return data; }
};

}  // namespace hfk
