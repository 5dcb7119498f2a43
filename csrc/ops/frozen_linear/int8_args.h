// out = activation(x W^T + bias) with W and the rows of x in int8.
#pragma once
#include "../../base/common.h"

namespace hfk {

// How int8 is multiplied (gemm/int8.h). Ordered from slowest to fastest; the names stand in hfadapt_kernels/int8_ways.py.
enum Int8Way : int { kInt8Pairs = 0, kInt8Bytes = 1, kInt8Tiles = 2 };

struct Int8LinearArgs {
  DType type;     // of x and out
  const void* x;  // [M, K], rows x_stride apart
  void* out;      // [M, N], contiguous
  int64_t M, N, K, x_stride;
  Int8Way way;
  const char* panels;   // [ceil(N / 16)][Kp / 4][16][4]
  const int32_t* sums;  // [round_up(N, 16)]: the sum of each output's int8 weights
  const float* scale;   // [N]
  const float* bias;    // [N], or null
  int activation;
  int64_t outliers;                // columns of W that are kept in float32 (their int8 weights are 0)
  const int64_t* outlier_columns;  // [outliers]
  const float* outlier_weights;    // [outliers][N]
};

}  // namespace hfk
