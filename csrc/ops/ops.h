// Every function that exists once per instruction set, with its argument struct.
#pragma once
#include "adapter_fusion/args.h"
#include "frozen_linear/args.h"
#include "frozen_linear/int8_args.h"
#include "grouped_lora/args.h"
#include "pal_attention/args.h"
#include "parallel_adapter_norm/args.h"
#include "prefix_attention/args.h"

#define HFK_OPS(OP)                                           \
  OP(frozen_linear_forward, LinearArgs)                       \
  OP(frozen_linear_pack, LinearPackArgs)                      \
  OP(frozen_linear_size, LinearSizeArgs)                      \
  OP(int8_linear_forward, Int8LinearArgs)                     \
  OP(parallel_adapter_norm_forward, AdapterNormArgs)          \
  OP(parallel_adapter_norm_block_rows, AdapterBlockRows)      \
  OP(parallel_adapter_norm_backward, AdapterNormBackwardArgs) \
  OP(grouped_lora_forward, LoraArgs)                          \
  OP(grouped_lora_backward, LoraArgs)                         \
  OP(pal_attention_forward, PalArgs)                          \
  OP(pal_attention_backward, PalArgs)                         \
  OP(prefix_attention_forward, PrefixAttentionForwardArgs)    \
  OP(prefix_attention_backward, PrefixAttentionBackwardArgs)  \
  OP(adapter_fusion_forward, AdapterFusionForwardArgs)        \
  OP(adapter_fusion_backward, AdapterFusionBackwardArgs)
