// Compiles every kernel into the namespace HFK_NAMESPACE and fills its table. The files beside this one set the name and
// are built with their own -m flags.
#pragma once
#include "../ops/adapter_fusion/kernels.h"
#include "../ops/frozen_linear/int8.h"
#include "../ops/frozen_linear/kernels.h"
#include "../ops/grouped_lora/backward.h"
#include "../ops/pal_attention/backward.h"
#include "../ops/parallel_adapter_norm/backward.h"
#include "../ops/prefix_attention/backward.h"
#include "dispatch.h"

namespace hfk {
namespace HFK_NAMESPACE {

extern const Kernels table;
const Kernels table = {
#define HFK_ENTRY(name, Args) name,
    HFK_OPS(HFK_ENTRY)
#undef HFK_ENTRY
};

}  // namespace HFK_NAMESPACE
}  // namespace hfk
