// frozen_linear: border to torch.
#include "args.h"

namespace hfk {
namespace {

int64_t frozen_linear_packed_bytes(int64_t weight_type, int64_t K, int64_t N) {
  int64_t bytes = 0;
  kernels().frozen_linear_size({WeightType(weight_type), K, N, &bytes});
  return bytes;
}

void check_packed(const Tensor& packed, int64_t weight_type, int64_t K, int64_t N) {
  HFK_CHECK(weight_type >= 0 && weight_type <= 2, "frozen_linear: weight_type: expected 0..2, got ", weight_type);
  const int64_t bytes = frozen_linear_packed_bytes(weight_type, K, N);
  HFK_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() && packed.numel() == bytes,
            "frozen_linear: packed: expected ", bytes, " bytes for this instruction set, got ", packed.numel());
}

void frozen_linear_pack(const Tensor& weight, bool transposed, int64_t weight_type, OptTensor scale, OptTensor k_scale,
                        Tensor packed) {
  HFK_CHECK(weight.dim() == 2, "frozen_linear: weight: expected 2 axes, got ", weight.dim());
  // The operand of x W^T is W^T (K = inputs, N = outputs); that of the gradient is W.
  const int64_t in = transposed ? 0 : 1, out = transposed ? 1 : 0;
  LinearPackArgs a = {};
  a.type = dtype_of(weight, "frozen_linear: weight");
  a.weight = weight.data_ptr();
  a.K = weight.size(in), a.N = weight.size(out), a.sk = weight.stride(in), a.sn = weight.stride(out);
  a.weight_type = WeightType(weight_type);
  check_packed(packed, weight_type, a.K, a.N);
  check_f32(scale, a.N, "frozen_linear: scale");
  check_f32(k_scale, a.K, "frozen_linear: k_scale");
  HFK_CHECK(weight_type != 2 || scale.has_value() || k_scale.has_value(), "frozen_linear: int8 needs a scale");
  a.scale = ptr_of<float>(scale), a.k_scale = ptr_of<float>(k_scale);
  a.packed = packed.data_ptr();
  kernels().frozen_linear_pack(a);
}

void frozen_linear_forward(const Tensor& x, const Tensor& packed, int64_t weight_type, OptTensor scale, OptTensor bias,
                           int64_t activation, Tensor out) {
  HFK_CHECK(x.dim() == 2 && out.dim() == 2 && x.size(0) == out.size(0),
            "frozen_linear: x and out: expected [M, K] "
            "and [M, N]");
  LinearArgs a = {};
  a.type = dtype_of(x, "frozen_linear: x");
  HFK_CHECK(out.scalar_type() == x.scalar_type() && out.is_contiguous(), "frozen_linear: out: expected x's dtype");
  a.M = x.size(0), a.K = x.size(1), a.N = out.size(1), a.x_stride = x.stride(0);
  HFK_CHECK(a.K <= 1 || x.stride(1) == 1, "frozen_linear: x: expected stride 1 on the last axis");
  check_packed(packed, weight_type, a.K, a.N);
  check_f32(scale, a.N, "frozen_linear: scale");
  check_f32(bias, a.N, "frozen_linear: bias");
  a.x = x.data_ptr(), a.out = out.data_ptr(), a.packed = packed.data_ptr();
  a.weight_type = WeightType(weight_type);
  a.scale = ptr_of<float>(scale), a.bias = ptr_of<float>(bias);
  a.activation = int(activation);
  if (a.M > 0 && a.N > 0) kernels().frozen_linear_forward(a);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("frozen_linear_pack", TORCH_BOX(&hfk::frozen_linear_pack));
  m.impl("frozen_linear_forward", TORCH_BOX(&hfk::frozen_linear_forward));
}
HFK_KERNELS(CompositeExplicitAutograd, m) {
  m.impl("frozen_linear_packed_bytes", TORCH_BOX(&hfk::frozen_linear_packed_bytes));
}
