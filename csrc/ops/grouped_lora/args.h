// out = y + s_t (drop(x) A_t^T) B_t^T for rows of different tasks t, and its gradients.
#pragma once
#include "../../base/common.h"

namespace hfk {

struct LoraTask {
  const void *a, *b;  // [R, Din] and [O, R], any strides
  int64_t R, a_sr, a_sk, b_so, b_sr;
  float scale;
  void *da, *db;         // contiguous, or null where not needed
  int64_t start, count;  // the rows order[start .. start + count) are this task's
};

// Rows order[first .. first + rows) of one task; contiguous: they are neighbours in memory.
struct LoraTile {
  int32_t task, first, rows, contiguous;
};

struct LoraArgs {
  DType type;
  int64_t Din, O, tasks, tiles, max_rank;
  const LoraTask* task;
  const LoraTile* tile;
  const int32_t* order;  // rows sorted by task
  int64_t active, idle;  // rows with a task, and without one
  const int32_t* idle_rows;
  const void* x;  // [rows, Din], x_stride apart
  int64_t x_stride;
  const void* y;  // [rows, O] or null; may be out itself
  int64_t y_stride;
  void* out;  // [rows, O], contiguous
  void* low;  // [rows, low_stride] or null: drop(x) A^T, for the backward
  int64_t low_stride;
  double dropout;  // 0: none
  int64_t seed;
  // Backward only.
  const void* grad;  // [rows, O], grad_stride apart
  int64_t grad_stride;
  void* dx;  // [rows, Din], contiguous, or null
  bool add_to_dx;
  float* dscale;  // [tasks] or null
};

constexpr int64_t kLoraTileRows = 96;  // most rows of a tile

}  // namespace hfk
