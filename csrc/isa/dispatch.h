// The table of kernels of one instruction set, and the one in use.
#pragma once
#include "../ops/ops.h"

namespace hfk {

struct Kernels {
#define HFK_ENTRY(name, Args) void (*name)(const Args&);
  HFK_OPS(HFK_ENTRY)
#undef HFK_ENTRY
};

// Ordered from slowest to fastest; the names stand in hfadapt_kernels/native.py.
enum Isa : int { kGeneric = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

const Kernels& kernels();
Isa current_isa();
Isa best_isa();
// Use `isa` if the processor has it; returns what is in use afterwards.
Isa set_isa(int isa);

}  // namespace hfk
