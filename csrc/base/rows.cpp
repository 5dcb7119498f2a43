#include "rows.h"

#include <vector>

namespace hfk {

struct RowPlan::Storage {
  std::vector<RowBlock> blocks;
  std::vector<TaskRows> tasks;
  std::vector<int32_t> order;
};

RowPlan::RowPlan(const int64_t* ids, int64_t batch, int64_t repeat, int64_t num_tasks, int64_t block_rows)
    : storage_(new Storage) {
  Storage& s = *storage_;
  s.tasks.assign(size_t(num_tasks), TaskRows{0, 0, nullptr});
  // Counting sort, stable, rows without a task first.
  std::vector<int64_t> start(size_t(num_tasks) + 2, 0);
  for (int64_t b = 0; b < batch; b++) start[size_t((ids ? ids[b] : 0) + 2)] += repeat;
  for (int64_t t = 0; t <= num_tasks; t++) start[size_t(t + 1)] += start[size_t(t)];
  // Now start[t + 1] is where task t begins, for t = -1, 0, ...
  if (ids) {
    s.order.resize(size_t(batch * repeat));
    std::vector<int64_t> at(start.begin(), start.end());
    for (int64_t b = 0; b < batch; b++)
      for (int64_t i = 0; i < repeat; i++) s.order[size_t(at[size_t(ids[b] + 1)]++)] = int32_t(b * repeat + i);
  }
  for (int64_t t = -1; t < num_tasks; t++) {
    const int64_t begin = start[size_t(t + 1)];
    const int64_t end = t == num_tasks - 1 ? batch * repeat : start[size_t(t + 2)];
    const int32_t* order = ids && end > begin ? s.order.data() + begin : nullptr;
    auto neighbours = [&](int64_t from, int64_t n) { return !order || order[from + n - 1] - order[from] + 1 == n; };
    if (t >= 0 && end > begin) {
      const bool flat = neighbours(0, end - begin);
      s.tasks[size_t(t)] = {end - begin, order ? order[0] : begin, flat ? nullptr : order};
    }
    // Long runs of neighbours become blocks of their own, which are read in place; short ones are gathered together.
    for (int64_t i = 0, n, run_end = 0; i < end - begin; i += n) {
      const int64_t left = end - begin - i;
      if (run_end <= i) run_end = order ? i + 1 : i + left;
      while (run_end < i + left && order[run_end] == order[run_end - 1] + 1) run_end++;
      const int64_t run = run_end - i, even = ceil_div(run, ceil_div(run, block_rows));
      n = run < 16 ? imin(block_rows, left) : imin(run, imin(block_rows, round_up(even, 16)));
      const bool flat = neighbours(i, n);
      s.blocks.push_back({int32_t(t), int32_t(n), order ? order[i] : begin + i, flat ? nullptr : order + i, i});
    }
  }
  blocks = s.blocks.data();
  count = int64_t(s.blocks.size());
  tasks = s.tasks.data();
}

RowPlan::~RowPlan() { delete storage_; }

int64_t first_bad_id(const int64_t* ids, int64_t batch, int64_t num_tasks) {
  for (int64_t b = 0; b < batch; b++)
    if (ids[b] < -1 || ids[b] >= num_tasks) return b;
  return batch;
}

}  // namespace hfk
