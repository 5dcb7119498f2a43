// Rows grouped by task and cut into blocks of one task each; shared by the ops that take per-row task ids.
#pragma once
#include "common.h"

namespace hfk {

// Rows index[0..count) if index is set, else first, first + 1, ...
struct RowBlock {
  int32_t task;  // -1: none
  int32_t count;
  int64_t first;
  const int32_t* index;
  int64_t position;  // of the first row among the rows of its task, in their order
};

// The rows of one task are order[start .. start + count), or start, start + 1, ... while they are neighbours.
struct TaskRows {
  int64_t count;
  int64_t start;
  const int32_t* index;
};

// The plan of one call. ids: [batch] or null (every row has task 0); each id stands for `repeat` rows.
class RowPlan {
 public:
  RowPlan(const int64_t* ids, int64_t batch, int64_t repeat, int64_t num_tasks, int64_t block_rows);
  ~RowPlan();
  RowPlan(const RowPlan&) = delete;
  RowPlan& operator=(const RowPlan&) = delete;

  const RowBlock* blocks = nullptr;
  int64_t count = 0;
  const TaskRows* tasks = nullptr;  // [num_tasks]
 private:
  struct Storage;
  Storage* storage_;
};

// The first id outside of -1 .. num_tasks - 1, or `batch` if there is none.
int64_t first_bad_id(const int64_t* ids, int64_t batch, int64_t num_tasks);

}  // namespace hfk
