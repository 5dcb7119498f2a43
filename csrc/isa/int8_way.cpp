// Chooses how products of int8 with int8 are made.
#include "int8_way.h"

#include <algorithm>
#include <atomic>
#if defined(HFK_X86)
#include <cpuid.h>
#endif

#include "dispatch.h"

namespace hfk {
namespace {

struct Found {
  bool avx512_vnni, avx_vnni;
};

Found detect() {
  Found found = {false, false};
#if defined(HFK_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    found.avx512_vnni = c >> 11 & 1;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx_vnni = a >> 4 & 1;
  }
#endif
  return found;
}

Int8Way most(Isa isa) {
  static const Found found = detect();
  if (isa == kAmx) return kInt8Tiles;
  // Without vector instructions bytes are multiplied one by one: for tests alone.
  const bool bytes = isa == kGeneric || (isa == kAvx2 ? found.avx_vnni : found.avx512_vnni);
  return bytes ? kInt8Bytes : kInt8Pairs;
}

std::atomic<int> asked{-1};

}  // namespace

Int8Way int8_way() {
  const Isa isa = current_isa();
  const int wanted = asked.load(std::memory_order_relaxed);
  if (wanted < 0) return isa == kGeneric ? kInt8Pairs : most(isa);
  return Int8Way(std::min(wanted, int(most(isa))));
}

Int8Way set_int8_way(int way) {
  asked.store(way, std::memory_order_relaxed);
  return int8_way();
}

}  // namespace hfk
