// The core of AdapterFusion: from products [tokens, M] and the bottlenecks z_n to the weights p and p z.
#pragma once
#include "../../base/common.h"

namespace hfk {

struct AdapterFusionArgs {
  DType type;  // of products, hidden, shift and the results of the same shapes
  int64_t tokens, M, adapters;
  bool biased;                // columns [M - adapters, M) belong to the up projections' biases
  const void* products;       // [tokens, M]
  const void* const* hidden;  // [adapters] of [tokens, ranks[n]], contiguous
  const int64_t* ranks;
  const void* shift;  // [tokens] or null
  float temperature;
  bool dropout_on;
  int64_t seed;
  double dropout;
};

struct AdapterFusionForwardArgs : AdapterFusionArgs {
  void* weighted;  // [tokens, M]
  float* weights;  // [tokens, adapters]
};

struct AdapterFusionBackwardArgs : AdapterFusionArgs {
  const void* grad_weighted;  // [tokens, M]
  const float* grad_weights;  // [tokens, adapters] or null
  const float* weights;       // [tokens, adapters]
  void* grad_products;        // [tokens, M]
  void* const* grad_hidden;   // [adapters], or null
  void* grad_shift;           // [tokens] or null
};

}  // namespace hfk
