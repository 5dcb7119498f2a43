// The argument structs of all ops.
#pragma once
#include "common.h"
#include "adapter_norm_args.h"
#include "frozen_linear_args.h"
#include "grouped_lora_args.h"
#include "pal_attention_args.h"
#include "prefix_attention_args.h"
#include "adapter_fusion_args.h"
