// out = norm(x [+ residual] + s * (up(drop(act(down(h) + down_bias))) + up_bias)), tasks by row.
#pragma once
#include "../../base/rows.h"

namespace hfk {

enum class Norm : int32_t { none = 0, layer = 1, rms = 2 };

// Everything of one task, in the element type of the op, contiguous.
struct AdapterTask {
  const void* down;       // [R, Dh]
  const void* up;         // [D, R]
  const void* down_bias;  // [R] or null
  const void* up_bias;    // [D] or null
  const void* scale;      // [D] or [1], or null: then scale_value
  int64_t scale_size;
  float scale_value;
  int64_t rank;
};

struct AdapterNormArgs {
  DType type;
  const RowPlan* plan;
  const AdapterTask* tasks;
  int64_t num_tasks, rows, D, Dh, max_rank;
  int activation;
  Norm norm;
  float eps, norm_offset;
  const void *norm_weight, *norm_bias;  // [D] or null
  bool has_dropout;
  int64_t seed;
  double dropout;
  // Forward. residual, z, pre, mean and rstd may be null.
  const void *x, *residual, *h;
  void *out, *z, *pre;  // pre: [rows, max_rank]
  float *mean, *rstd;
};

struct AdapterBlockRows {
  DType type;
  int64_t max_rank;
  int64_t* rows;
};

// Where the gradients of one task go (element type of the op), or null.
struct AdapterGrads {
  void *down, *up, *down_bias, *up_bias, *scale;
};

struct AdapterNormBackwardArgs {
  AdapterNormArgs forward;  // h, z, pre, mean, rstd as saved; no x, residual, out
  const void* dout;
  void* dz;  // [rows, D]; null without norm: then it is dout
  void* dh;  // [rows, Dh] or null
  const AdapterGrads* grads;
  void *dnorm_weight, *dnorm_bias;
};

}  // namespace hfk
