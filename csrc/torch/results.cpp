// Large results of ops in memory that later calls use again (runtime.cpp).
#include "args.h"

// torch 2.11 and later; earlier ones cannot be told what to do with memory that is no longer used.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes,
                                                                const int64_t* strides, int64_t storage_offset,
                                                                int32_t dtype, int32_t device_type, int32_t device_index,
                                                                AtenTensorHandle* result, int32_t layout,
                                                                const uint8_t* opaque, int64_t opaque_size,
                                                                void (*deleter)(void* data, void* context), void* context);

namespace hfk {
namespace {

bool keeps_results() { return torch_from_blob != nullptr; }

struct Layout {
  std::vector<int64_t> strides;
  int64_t count = 1;
  int32_t dtype = 0;

  Layout(const Tensor& like, const std::vector<int64_t>& shape) : strides(shape.size()) {
    for (size_t i = shape.size(); i-- > 0;) {
      HFK_CHECK(shape[i] >= 0, "result: expected sizes of at least 0, got ", shape[i]);
      strides[i] = count, count *= shape[i];
    }
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  }
};

Tensor kept(const Tensor& like, const std::vector<int64_t>& shape, const Layout& layout) {
  void* data = shared_alloc(size_t(imax(layout.count, 1)) * like.element_size());
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = torch_from_blob(
      data, int64_t(shape.size()), shape.data(), layout.strides.data(), 0, layout.dtype, aoti_torch_device_type_cpu(), -1,
      &handle, aoti_torch_layout_strided(), nullptr, 0, [](void* memory, void*) { shared_free(memory); }, nullptr);
  if (error != AOTI_TORCH_SUCCESS) shared_free(data);
  TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}

Tensor result(const Tensor& like, std::vector<int64_t> shape) {
  HFK_CHECK(keeps_results(), "result: needs torch 2.11");
  return kept(like, shape, Layout(like, shape));
}

}  // namespace

Tensor empty_result(const Tensor& like, const std::vector<int64_t>& shape) {
  const Layout layout(like, shape);
  if (layout.count * int64_t(like.element_size()) >= kLargeResult && keeps_results()) return kept(like, shape, layout);
  AtenTensorHandle handle = nullptr;
  // Not aten::empty through the dispatcher, which looks it up by its name at every call.
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), layout.strides.data(), layout.dtype,
                                                  aoti_torch_device_type_cpu(), -1, &handle));
  return Tensor(handle);
}
}  // namespace hfk

HFK_KERNELS(CompositeExplicitAutograd, m) { m.impl("keeps_results", TORCH_BOX(&hfk::keeps_results)); }
HFK_KERNELS(CPU, m) { m.impl("result", TORCH_BOX(&hfk::result)); }
