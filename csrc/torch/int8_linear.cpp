// frozen_linear with int8 rows: border to torch, and the layout of W, which is the same for all instruction sets.
#include "../isa/int8_way.h"
#include "args.h"

namespace hfk {
namespace {

constexpr int64_t kBlock = 16;
// 127 * 127 a product: int32 holds the sum of so many.
constexpr int64_t kMostInputs = 0x7fffffff / (127 * 127);

// Panels, the sum of each output's weights, and the columns that stay in float32, one after the other.
struct Parts {
  int64_t outputs, inputs, outliers;  // rounded up to blocks and to 64
  int64_t N;
  int64_t sums_at() const { return outputs * inputs; }
  int64_t outliers_at() const { return sums_at() + outputs * 4; }
  int64_t bytes() const { return outliers_at() + outliers * N * 4; }
};
Parts parts_of(int64_t K, int64_t N, int64_t outliers) { return {round_up(N, kBlock), round_up(K, 64), outliers, N}; }

int64_t int8_linear_packed_bytes(int64_t K, int64_t N, int64_t outliers) { return parts_of(K, N, outliers).bytes(); }

Parts check_packed(const Tensor& packed, int64_t K, int64_t N, int64_t outliers) {
  HFK_CHECK(K <= kMostInputs, "int8_linear: expected at most ", kMostInputs, " inputs, got ", K);
  const Parts parts = parts_of(K, N, outliers);
  HFK_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() && packed.numel() == parts.bytes(),
            "int8_linear: packed: expected ", parts.bytes(), " bytes, got ", packed.numel());
  return parts;
}

void int8_linear_pack(const Tensor& weight, OptTensor outlier_weight, Tensor packed) {
  HFK_CHECK(weight.dim() == 2 && weight.scalar_type() == ScalarType::Char && weight.is_contiguous(),
            "int8_linear: weight: expected a contiguous int8 tensor of 2 axes");
  const int64_t N = weight.size(0), K = weight.size(1);
  const int64_t outliers = outlier_weight.has_value() ? outlier_weight->size(0) : 0;
  const Parts parts = check_packed(packed, K, N, outliers);
  check_f32(outlier_weight, outliers * N, "int8_linear: outlier_weight");
  const int8_t* w = ptr_of<int8_t>(weight);
  char* panels = ptr_of<char>(packed);
  int32_t* sums = reinterpret_cast<int32_t*>(panels + parts.sums_at());
  memset(panels, 0, size_t(parts.outliers_at()));
  parallel(parts.outputs / kBlock, [&](int64_t first, int64_t last) {
    for (int64_t n = first * kBlock; n < imin(N, last * kBlock); n++) {
      char* d = panels + n / kBlock * parts.inputs * kBlock + n % kBlock * 4;
      int32_t sum = 0;
      for (int64_t k = 0; k < K; k++) {
        d[k / 4 * kBlock * 4 + k % 4] = char(w[n * K + k]);
        sum += w[n * K + k];
      }
      sums[n] = sum;
    }
  });
  if (outliers) memcpy(panels + parts.outliers_at(), outlier_weight->data_ptr(), size_t(outliers * N) * 4);
}

void int8_linear_forward(const Tensor& x, const Tensor& packed, const Tensor& scale, OptTensor outliers, OptTensor bias,
                         int64_t activation, Tensor out) {
  HFK_CHECK(x.dim() == 2 && out.dim() == 2 && x.size(0) == out.size(0),
            "int8_linear: x and out: expected [M, K] and [M, N]");
  Int8LinearArgs a = {};
  a.type = dtype_of(x, "int8_linear: x");
  HFK_CHECK(out.scalar_type() == x.scalar_type() && out.is_contiguous(), "int8_linear: out: expected x's dtype");
  a.M = x.size(0), a.K = x.size(1), a.N = out.size(1), a.x_stride = x.stride(0);
  HFK_CHECK(a.K <= 1 || x.stride(1) == 1, "int8_linear: x: expected stride 1 on the last axis");
  if (outliers.has_value()) {
    HFK_CHECK(outliers->scalar_type() == ScalarType::Long && outliers->dim() == 1 && outliers->is_contiguous(),
              "int8_linear: outliers: expected a contiguous int64 tensor of one axis");
    a.outliers = outliers->numel(), a.outlier_columns = ptr_of<int64_t>(outliers);
    for (int64_t i = 0; i < a.outliers; i++)
      HFK_CHECK(a.outlier_columns[i] >= 0 && a.outlier_columns[i] < a.K, "int8_linear: outliers: expected columns below ",
                a.K, ", got ", a.outlier_columns[i]);
  }
  const Parts parts = check_packed(packed, a.K, a.N, a.outliers);
  check_f32(scale, a.N, "int8_linear: scale");
  check_f32(bias, a.N, "int8_linear: bias");
  const char* panels = ptr_of<char>(packed);
  a.x = x.data_ptr(), a.out = out.data_ptr(), a.panels = panels, a.way = int8_way();
  a.sums = reinterpret_cast<const int32_t*>(panels + parts.sums_at());
  a.outlier_weights = reinterpret_cast<const float*>(panels + parts.outliers_at());
  a.scale = ptr_of<float>(scale), a.bias = ptr_of<float>(bias);
  a.activation = int(activation);
  if (a.M > 0 && a.N > 0) kernels().int8_linear_forward(a);
}

int64_t int8_way_asked(int64_t wanted) { return int64_t(wanted < -1 ? int8_way() : set_int8_way(int(wanted))); }

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("int8_linear_pack", TORCH_BOX(&hfk::int8_linear_pack));
  m.impl("int8_linear_forward", TORCH_BOX(&hfk::int8_linear_forward));
}
HFK_KERNELS(CompositeExplicitAutograd, m) {
  m.impl("int8_linear_packed_bytes", TORCH_BOX(&hfk::int8_linear_packed_bytes));
  m.impl("int8_way", TORCH_BOX(&hfk::int8_way_asked));
}
