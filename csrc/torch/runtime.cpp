// Threads (torch's own pool, no second OpenMP) and scratch memory.
#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <new>

#include "../base/common.h"

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

// Workspaces of finished calls and large results that nobody holds any more, kept for the next call: the pages of a fresh
// block are faulted in one by one, which for some megabytes costs more than the work on them, and whether malloc gives a
// block back to the kernel in between depends on what else lies in its heap. Whoever finds the list in use does without it.
struct Block {
  Block* next;
  void* memory;  // what this header and the bytes behind it stand in
  size_t bytes;  // behind this header
};
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kKeepShared = 0;  // a larger block would hide what is written behind a smaller one
#else
constexpr size_t kKeepShared = size_t(256) << 20;
#endif
constexpr size_t kSmall = 65536;  // malloc itself keeps these
// Held for some instructions. A std::mutex that one only tries to take asks for a symbol of glibc 2.34.
std::atomic_flag kept_in_use = ATOMIC_FLAG_INIT;
struct TryHold {
  const bool held = !kept_in_use.test_and_set(std::memory_order_acquire);
  TryHold() = default;
  TryHold(const TryHold&) = delete;
  ~TryHold() {
    if (held) kept_in_use.clear(std::memory_order_release);
  }
};
Block* kept = nullptr;
size_t kept_bytes = 0;

Block* take_kept(size_t bytes) {
  const TryHold list;
  if (!list.held) return nullptr;
  Block** best = nullptr;
  for (Block** at = &kept; *at; at = &(*at)->next)
    if ((*at)->bytes >= bytes && (*at)->bytes / 2 <= bytes + 65536 && (!best || (*at)->bytes < (*best)->bytes)) best = at;
  if (best == nullptr) return nullptr;
  Block* found = *best;
  *best = found->next;
  kept_bytes -= found->bytes;
  return found;
}

bool keep(Block* block) {
  const TryHold list;
  if (!list.held || block->bytes > kKeepShared || block->bytes < kSmall) return false;
  // The oldest make room.
  while (kept_bytes + block->bytes > kKeepShared) {
    Block** last = &kept;
    while ((*last)->next) last = &(*last)->next;
    kept_bytes -= (*last)->bytes;
    std::free((*last)->memory);
    *last = nullptr;
  }
  block->next = kept;
  kept = block;
  kept_bytes += block->bytes;
  return true;
}

constexpr size_t kHeader = 64;  // keeps what follows aligned

Block* new_block(size_t bytes) {
  static std::atomic<size_t> count{0};
  // Neighbours start at different places within a page, as slots of scratch do.
  const size_t shift = bytes < kSmall ? 0 : kStagger * (count++ % 8);
  void* memory = allocate(shift + kHeader + bytes);
#if defined(MADV_HUGEPAGE)
  // Large pages where the kernel grants them: fewer faults, and fewer misses of the processor's address cache. A refusal
  // changes nothing.
  constexpr uintptr_t huge = uintptr_t(2) << 20;
  const uintptr_t start = (uintptr_t(memory) + huge - 1) / huge * huge, end = (uintptr_t(memory) + bytes) / huge * huge;
  if (end > start) (void)madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
  Block* block = reinterpret_cast<Block*>(static_cast<char*>(memory) + shift);
  block->memory = memory;
  block->bytes = bytes;
  return block;
}

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
  Block* block = take_kept(bytes);
  if (block == nullptr) block = new_block(bytes);
  void* p = reinterpret_cast<char*>(block) + kHeader;
  fill(p, bytes);
  return p;
}

void shared_free(void* p) {
  if (p == nullptr) return;
  Block* block = reinterpret_cast<Block*>(static_cast<char*>(p) - kHeader);
  if (!keep(block)) std::free(block->memory);
}

}  // namespace hfk
