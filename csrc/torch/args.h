// Reads and checks op arguments at the border to torch (the files beside this one only; never in instruction-set files).
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "../isa/dispatch.h"
#include "library.h"

namespace hfk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;

#define HFK_CHECK(condition, ...) STD_TORCH_CHECK(condition, "hfadapt_cpu: ", __VA_ARGS__)

inline DType dtype_of(const Tensor& t, const char* name) {
  const auto type = t.scalar_type();
  HFK_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, name, ": expected float32 or bfloat16");
  return type == ScalarType::Float ? DType::f32 : DType::bf16;
}
template <class T>
T* ptr_of(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* ptr_of(const OptTensor& t) {
  return t.has_value() ? ptr_of<T>(*t) : nullptr;
}
inline void check_f32(const OptTensor& t, int64_t size, const char* name) {
  if (!t.has_value()) return;
  HFK_CHECK(t->scalar_type() == ScalarType::Float && t->is_contiguous() && t->numel() == size, name,
            ": expected a contiguous float32 tensor of ", size, " elements, got ", t->numel());
}

// Uninitialised and contiguous, on the processor, in the dtype of `like` (results.cpp); large ones in memory that later
// results use again.
inline constexpr int64_t kLargeResult = int64_t(1) << 20;  // as in hfadapt_kernels/cpu_tensors.py
Tensor empty_result(const Tensor& like, const std::vector<int64_t>& shape);

}  // namespace hfk
