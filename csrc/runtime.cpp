// Threads (torch's own pool, no second OpenMP) and scratch memory.
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>

#include "common.h"

namespace hfk {

void parallel_run(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

int64_t num_threads() { return int64_t(torch::stable::get_num_threads()); }

namespace {

bool poison() {
  static const bool on = std::getenv("HFADAPT_POISON") != nullptr && std::getenv("HFADAPT_POISON")[0] == '1';
  return on;
}

void* allocate(size_t bytes) {
  // Exactly as many bytes: AddressSanitizer sees the first one beyond.
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes + (bytes == 0)) != 0) throw std::bad_alloc();
  return p;
}

// 0xff in every byte is a NaN in float32 and in bfloat16.
void fill(void* p, size_t bytes) {
  if (poison()) std::memset(p, 0xff, bytes);
}

constexpr int kSlots = 12;
constexpr size_t kKeep = size_t(64) << 20;

// Slots start at different places within a page: a store and a later load whose addresses agree in the low 12 bits
// are taken for the same address by the processor, and the load waits.
constexpr size_t kStagger = 320;

struct ThreadScratch {
  void* memory[kSlots] = {};
  size_t bytes[kSlots] = {};
  ~ThreadScratch() {
    for (void* p : memory) std::free(p);
  }
};

thread_local ThreadScratch local;

}  // namespace

void* scratch_bytes(int slot, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  std::free(local.memory[slot]);
  local.memory[slot] = allocate(bytes);
  fill(local.memory[slot], bytes);
  return local.memory[slot];
#else
  // A slot that once held far more than is asked for now gives the memory back.
  if (bytes > local.bytes[slot] || (local.bytes[slot] > kKeep && bytes < local.bytes[slot] / 4)) {
    std::free(local.memory[slot]);
    local.memory[slot] = nullptr;
    local.bytes[slot] = 0;
    local.memory[slot] = allocate(bytes + kStagger * kSlots);
    local.bytes[slot] = bytes;
  }
  void* start = static_cast<char*>(local.memory[slot]) + kStagger * size_t(slot);
  fill(start, bytes);
  return start;
#endif
}

void* shared_alloc(size_t bytes) {
  void* p = allocate(bytes);
  fill(p, bytes);
  return p;
}

void shared_free(void* p) { std::free(p); }

}  // namespace hfk
