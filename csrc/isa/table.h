// Compiles every kernel into the namespace HFK_NAMESPACE and fills its table. Each isa_*.cpp sets the name and is built
// with its own -m flags.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <cmath>

#include "dispatch.h"

#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wunused-function"
// gcc 12 reports its own _mm512_undefined_* headers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace hfk {
namespace HFK_NAMESPACE {
#include "vec.h"
#include "math.h"
#include "pack.h"
#include "gemm.h"
#include "kernels.inc"

extern const Kernels table;
const Kernels table = {
#define HFK_OP(name, Args) name,
#include "ops.inc"
#undef HFK_OP
};
}  // namespace HFK_NAMESPACE
}  // namespace hfk
