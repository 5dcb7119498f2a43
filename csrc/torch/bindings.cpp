// The schemas of all C++ ops, in one place. They are internal (namespace hfadapt_cpu, see library.h):
// hfadapt_kernels/<op>/cpu.py checks arguments, allocates the outputs and calls them below autograd.
#include "args.h"

HFK_SCHEMAS(m) {
  m.def("isa(int wanted) -> int");
  m.def("int8_way(int wanted) -> int");
  m.def("keeps_results() -> bool");
  m.def("result(Tensor like, int[] shape) -> Tensor");
  m.def("frozen_linear_packed_bytes(int weight_type, int K, int N) -> int");
  m.def(
      "frozen_linear_pack(Tensor weight, bool transposed, int weight_type, Tensor? scale, Tensor? k_scale, "
      "Tensor(a!) packed) -> ()");
  m.def(
      "frozen_linear_forward(Tensor x, Tensor packed, int weight_type, Tensor? scale, Tensor? bias, int activation, "
      "Tensor(a!) out) -> ()");
  m.def("int8_linear_packed_bytes(int K, int N, int outliers) -> int");
  m.def("int8_linear_pack(Tensor weight, Tensor? outlier_weight, Tensor(a!) packed) -> ()");
  m.def(
      "int8_linear_forward(Tensor x, Tensor packed, Tensor scale, Tensor? outliers, Tensor? bias, int activation, "
      "Tensor(a!) out) -> ()");
  m.def(
      "parallel_adapter_norm_forward(Tensor x, Tensor? residual, Tensor h, Tensor[] down, Tensor[] up, Tensor[] down_bias, "
      "Tensor[] up_bias, Tensor[] scale, float[] scale_values, Tensor? norm_weight, Tensor? norm_bias, Tensor? ids, "
      "Tensor? seed, int activation, int norm, float eps, float norm_offset, float dropout, Tensor(a!) out, "
      "Tensor(b!)? z, Tensor(c!)? pre, Tensor(d!)? mean, Tensor(e!)? rstd) -> ()");
  m.def(
      "parallel_adapter_norm_backward(Tensor dout, Tensor? z, Tensor pre, Tensor? mean, Tensor? rstd, Tensor h, Tensor[] down, "
      "Tensor[] up, Tensor[] up_bias, Tensor[] scale, float[] scale_values, Tensor? norm_weight, Tensor? ids, "
      "Tensor? seed, int activation, int norm, float norm_offset, float dropout, Tensor(a!)? dz, Tensor(b!)? dh, "
      "Tensor(c!)[] grads) -> ()");
  m.def("grouped_lora_add(Tensor x, Tensor y, Tensor[] a, Tensor[] b, Tensor scale, Tensor? ids) -> Tensor");
  m.def(
      "grouped_lora_forward(Tensor x, Tensor? y, Tensor[] a, Tensor[] b, Tensor scale, Tensor? ids, float dropout, "
      "Tensor? seed, Tensor(a!) out, Tensor(b!) low) -> ()");
  m.def(
      "grouped_lora_backward(Tensor grad, Tensor x, Tensor low, Tensor[] a, Tensor[] b, Tensor scale, Tensor? ids, "
      "float dropout, Tensor? seed, bool add_to_dx, Tensor(a!) dx, Tensor(b!)[] da, Tensor(c!)[] db, "
      "Tensor(d!) dscale) -> ()");
  m.def(
      "pal_attention_forward(Tensor x, int B, Tensor[] weights, int[] present, Tensor? ids, Tensor? mask, int heads, "
      "bool causal, int activation, float dropout, Tensor? seed, Tensor(a!) out, Tensor(b!) hidden, "
      "Tensor(d!) pre) -> ()");
  m.def(
      "pal_attention_backward(Tensor grad, Tensor x, int B, Tensor[] weights, int[] present, Tensor? ids, Tensor? mask, "
      "int heads, bool causal, int activation, float dropout, Tensor? seed, Tensor hidden, Tensor pre, "
      "Tensor(a!) dx, Tensor(b!)[] grads) -> ()");
  m.def(
      "prefix_attention_forward(Tensor query, Tensor key, Tensor value, Tensor[] prefix_key, Tensor[] prefix_value, "
      "Tensor? ids, Tensor? mask, Tensor? bias, bool causal, float scaling, int form, float dropout, int? seed, "
      "Tensor(a!) out, Tensor(b!) gate) -> ()");
  m.def(
      "prefix_attention_backward(Tensor grad_out, Tensor? grad_gate, Tensor query, Tensor key, Tensor value, "
      "Tensor[] prefix_key, Tensor[] prefix_value, Tensor? ids, Tensor? mask, Tensor? bias, bool causal, "
      "float scaling, int form, float dropout, int? seed, Tensor(a!)? grad_query, Tensor(b!)? grad_key, "
      "Tensor(c!)? grad_value, Tensor(d!)? grad_scores, Tensor(e!)[] grad_prefix_key, "
      "Tensor(f!)[] grad_prefix_value) -> ()");
  m.def(
      "adapter_fusion_forward(Tensor products, Tensor[] hidden, Tensor? shift, float temperature, float dropout, "
      "int? seed, Tensor(a!) weighted, Tensor(b!) weights) -> ()");
  m.def(
      "adapter_fusion_backward(Tensor grad_weighted, Tensor? grad_weights, Tensor weights, Tensor products, "
      "Tensor[] hidden, Tensor? shift, float temperature, float dropout, int? seed, Tensor(a!) grad_products, "
      "Tensor(b!)[] grad_hidden, Tensor(c!)? grad_shift) -> ()");
}

namespace {
int64_t isa(int64_t wanted) { return int64_t(hfk::set_isa(int(wanted))); }
}  // namespace

HFK_KERNELS(CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
