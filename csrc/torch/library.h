// Registers schemas and kernels under a namespace that the library carries as data, not as code (library.cpp): a copy of it
// gets another one without a compiler, and two copies run in one process. torch's macros want the name when they are
// compiled; what they call is the stable C interface that is called here.
#pragma once
#include <torch/csrc/stable/library.h>

namespace hfk {

// Of all ops of this library; ends in a zero byte and stays as it is.
const char* ops_namespace();

class Library {
 public:
  using Fill = void (*)(Library&);
  explicit Library(Fill fill) {
    if (aoti_torch_library_init_def(ops_namespace(), __FILE__, __LINE__, &handle_) != AOTI_TORCH_SUCCESS) handle_ = nullptr;
    fill(*this);
  }
  Library(const char* key, Fill fill) {
    if (aoti_torch_library_init_impl(ops_namespace(), key, __FILE__, __LINE__, &handle_) != AOTI_TORCH_SUCCESS)
      handle_ = nullptr;
    fill(*this);
  }
  ~Library() {
    if (handle_) aoti_torch_delete_library_object(handle_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  void def(const char* schema) {
    // torch has said why there is no handle; an exception here would end the process that loads the library.
    if (handle_) TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(handle_, schema));
  }
  void impl(const char* name, void (*boxed)(StableIValue*, uint64_t, uint64_t)) {
    if (handle_) TORCH_ERROR_CODE_CHECK(torch_library_impl(handle_, name, boxed, TORCH_ABI_VERSION));
  }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace hfk

// Once a library: m.def(schema) for each op.
#define HFK_SCHEMAS(m)                                         \
  static void hfk_schemas(hfk::Library&);                      \
  static const hfk::Library hfk_schemas_library(&hfk_schemas); \
  static void hfk_schemas(hfk::Library& m)

// Once a file and dispatch key: m.impl(name, TORCH_BOX(&function)) for each op.
#define HFK_KERNELS(key, m)                                              \
  static void hfk_kernels_##key(hfk::Library&);                          \
  static const hfk::Library hfk_library_##key(#key, &hfk_kernels_##key); \
  static void hfk_kernels_##key(hfk::Library& m)
