// out = activation(x W^T * scale + bias) with W packed.
#pragma once
#include "../../base/common.h"

namespace hfk {

// How the packed weight is stored. bf16 panels become float panels where the processor has no bf16 product.
enum class WeightType : int32_t { f32 = 0, bf16 = 1, int8 = 2 };

struct LinearArgs {
  DType type;     // of x and out
  const void* x;  // [M, K], rows x_stride apart
  void* out;      // [M, N], contiguous
  int64_t M, N, K, x_stride;
  WeightType weight_type;
  const void* packed;  // panels, made by frozen_linear_pack on the same instruction set
  const float* scale;  // [N] per output, or null
  const float* bias;   // [N], or null
  int activation;
};

struct LinearPackArgs {
  DType type;          // of the weight
  const void* weight;  // K x N operand: element (k, n) at k * sk + n * sn
  int64_t K, N, sk, sn;
  WeightType weight_type;
  const float* scale;    // int8: [N], q = round(w / scale)
  const float* k_scale;  // int8, transposed operand: [K], the scale runs along K
  void* packed;
};

struct LinearSizeArgs {
  WeightType weight_type;
  int64_t K, N;
  int64_t* bytes;
};

}  // namespace hfk
