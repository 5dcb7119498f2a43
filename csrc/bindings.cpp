// The schemas of all C++ ops, in one place. They are internal (namespace hfadapt_cpu): hfadapt_kernels/<op>/cpu.py
// checks arguments, allocates the outputs and calls them below autograd.
#include "torch_args.h"

STABLE_TORCH_LIBRARY(hfadapt_cpu, m) {
  m.def("isa(int wanted) -> int");
  m.def("linear_packed_bytes(int weight_type, int K, int N) -> int");
  m.def(
      "linear_pack(Tensor weight, bool transposed, int weight_type, Tensor? scale, Tensor? k_scale, "
      "Tensor(a!) packed) -> ()");
  m.def(
      "linear_forward(Tensor x, Tensor packed, int weight_type, Tensor? scale, Tensor? bias, int activation, "
      "Tensor(a!) out) -> ()");
}

namespace {
int64_t isa(int64_t wanted) { return int64_t(hfk::set_isa(int(wanted))); }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hfadapt_cpu, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
