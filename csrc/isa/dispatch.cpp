// Chooses the instruction set: the best that the processor has, or the one that HFADAPT_ISA names.
#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The last instruction set that is built (setup.py: HFADAPT_MAX_ISA).
#if !defined(HFK_MAX_ISA)
#define HFK_MAX_ISA 4
#endif

namespace hfk {

#define HFK_TABLE(isa)        \
  namespace isa {             \
  extern const Kernels table; \
  }
HFK_TABLE(generic)
#if defined(HFK_X86)
HFK_TABLE(avx2)
HFK_TABLE(avx512)
HFK_TABLE(avx512bf16)
HFK_TABLE(amx)
#endif
#undef HFK_TABLE

namespace {

const Kernels* const kTables[] = {
    &generic::table,
#if defined(HFK_X86)
    &avx2::table,
#if HFK_MAX_ISA > 1
    &avx512::table,  &avx512bf16::table, &amx::table,
#endif
#endif
};

#if defined(HFK_X86)
bool request_amx() {
#if defined(__linux__)
  // The kernel grants the 8 KiB of tile state only to processes that ask (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

bool has_amx_bits() {
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);  // AMX-BF16, AMX-TILE, AMX-INT8
}
#endif

Isa detect() {
#if defined(HFK_X86)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return kGeneric;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")))
    return kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return kAvx512;
  return has_amx_bits() && request_amx() ? kAmx : kAvx512Bf16;
#else
  return kGeneric;
#endif
}

Isa from_environment() {
  const char* wanted = std::getenv("HFADAPT_ISA");
  const char* names[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
  if (wanted != nullptr)
    for (int i = 0; i <= int(best_isa()); i++)
      if (std::strcmp(wanted, names[i]) == 0) return Isa(i);
  return best_isa();
}

std::atomic<int> current{-1};

}  // namespace

Isa best_isa() {
  static const Isa found = std::min(detect(), Isa(HFK_MAX_ISA));
  return found;
}

Isa current_isa() {
  int isa = current.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = from_environment();
    current.store(isa, std::memory_order_relaxed);
  }
  return Isa(isa);
}

Isa set_isa(int isa) {
  if (isa >= 0 && isa <= int(best_isa())) current.store(isa, std::memory_order_relaxed);
  return current_isa();
}

const Kernels& kernels() { return *kTables[current_isa()]; }

}  // namespace hfk
