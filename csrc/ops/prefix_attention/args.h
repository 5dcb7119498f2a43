// Attention over a per-task prefix and the row's own keys. Shape letters: B rows, H query heads, G key heads, Tq queries,
// Tk keys, D head dimension, P prefix length.
#pragma once
#include "../../base/common.h"

namespace hfk {

// Rows of one task whose prefix gradients one work item sums.
constexpr int64_t kPrefixUnitRows = 8;

enum class PrefixForm : int32_t { softmax = 0, no_gating = 1, relu = 2 };

// A [B, heads, T, D] tensor whose last axis has stride 1.
struct HeadsView {
  void* data;
  int64_t row, head, token;
};

// Something broadcast to [B, H, Tq, Tk], strides in elements; data may be null.
struct ScoreView {
  const void* data;
  int64_t row, head, query, key;
};

struct PrefixAttentionArgs {
  DType type;  // of all tensors with a head dimension
  int64_t B, H, G, Tq, Tk, D;
  HeadsView query, key, value;
  int64_t tasks;
  const void* const* prefix_key;          // [tasks] contiguous [G, P, D]
  const void* const* prefix_value;        // likewise
  const int64_t* prefix_length;           // [tasks]
  const int64_t* ids;                     // [B], -1 for no prefix
  const int64_t* order;                   // rows, those of a task one after the other; null: as they come
  ScoreView mask_bool, mask_float, bias;  // uint8, float, float
  bool causal;
  double scaling;
  PrefixForm form;
  bool dropout_on;
  int64_t seed;
  double dropout;
};

struct PrefixAttentionForwardArgs : PrefixAttentionArgs {
  HeadsView out;
  float* gate;  // [B, H, Tq]
};

struct PrefixAttentionBackwardArgs : PrefixAttentionArgs {
  // Rows grouped by task and cut into units of at most kPrefixUnitRows: unit u has the rows order[start[u]..start[u + 1]).
  int64_t units;
  const int64_t* unit_task;
  const int64_t* unit_start;  // [units + 1]
  HeadsView grad_out;
  const float* grad_gate;  // [B, H, Tq] or null
  // Results; null data for those not wanted.
  HeadsView grad_query, grad_key, grad_value;
  float* grad_scores;            // [B, H, Tq, Tk]: the gradient of the bias before broadcasting, or null
  void* const* grad_prefix_key;  // [tasks] contiguous, or null
  void* const* grad_prefix_value;
};

}  // namespace hfk
