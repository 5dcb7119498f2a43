// act(V_D MHA(V_E x)) for sequences of different tasks, and its gradients.
#pragma once
#include "../../base/common.h"

namespace hfk {

// The order of FAMILIES in hfadapt_kernels/pal_attention/weights.py; biases follow their matrices.
enum PalFamily : int {
  kPalEncoder,
  kPalQuery,
  kPalKey,
  kPalValue,
  kPalDecoder,
  kPalOutput,
  kPalMatrices,
  kPalFamilies = 12
};

struct PalTask {
  const void* weight[kPalFamilies];  // null where absent
  int64_t row_stride[kPalFamilies], column_stride[kPalFamilies];
  void* grad[kPalFamilies];  // contiguous, null where not needed
};

// Tokens [row, row + rows) of the flattened [B * T] belong to one sequence and one task.
struct PalTile {
  int32_t task, rows;
  int64_t row;
};

// Tiles [first, last) of one task, by one thread: it packs the task's weights for them in its own cache.
struct PalChunk {
  int64_t task, first, last;
};

struct PalArgs {
  DType type;
  int64_t B, T, D, S, Sp, heads, tasks, chunks;  // Sp: S rounded up to 32, the stride of hidden
  const PalTask* task;
  const PalTile* tile;  // in the order of their tasks
  const PalChunk* chunk;
  const int64_t* sequence_task;  // [B], -1: none
  const void* x;                 // [B * T, D], x_stride apart
  int64_t x_stride;
  const float* mask;  // additive, element (b, i, j) at b * mask_b + i * mask_i + j; or null
  int64_t mask_b, mask_i;
  bool causal;
  int activation;
  double dropout;  // 0: none
  int64_t seed;
  void* out;     // [B * T, D]
  void* hidden;  // [pieces][B * T][Sp]: encoded, query, key, value, mixed, and with an output projection
  int pieces;    // projected
  void* slope;   // [B * T, D] the activation's derivative at the decoder's output, or null
  // Backward only.
  const void* grad;  // [B * T, D], grad_stride apart
  int64_t grad_stride;
  void* dx;  // [B * T, D] or null
};

constexpr int64_t kPalTileRows = 96;
constexpr int64_t kPalChunkRows = 512;

}  // namespace hfk
