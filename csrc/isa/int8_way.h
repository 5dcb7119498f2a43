// How products of int8 with int8 are made (gemm/int8.h): what the processor has beside the instruction set in use.
#pragma once
#include "../ops/frozen_linear/int8_args.h"

namespace hfk {

// The one in use: the fastest that the instruction set in use has, or the one asked for.
Int8Way int8_way();
// Ask for one; -1: the fastest. Returns what is in use afterwards, which is slower where the processor lacks it.
Int8Way set_int8_way(int way);

}  // namespace hfk
