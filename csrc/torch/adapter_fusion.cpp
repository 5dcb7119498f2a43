// adapter_fusion: border to torch.
#include "args.h"

namespace hfk {
namespace {

struct FusionLists {
  std::vector<const void*> hidden;
  std::vector<int64_t> ranks;
};

void* same(const Tensor& t, const Tensor& like, int64_t rows, int64_t columns, const char* name) {
  HFK_CHECK(t.scalar_type() == like.scalar_type() && t.is_contiguous() && t.numel() == rows * columns,
            "adapter_fusion: ", name, ": expected a contiguous [", rows, ", ", columns, "] of the products' dtype");
  return t.data_ptr();
}
float* statistics(const Tensor& t, int64_t rows, int64_t columns, const char* name) {
  HFK_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == rows * columns,
            "adapter_fusion: ", name, ": expected a contiguous float32 [", rows, ", ", columns, "]");
  return ptr_of<float>(t);
}

void fill(AdapterFusionArgs& a, FusionLists& lists, const Tensor& products, const std::vector<Tensor>& hidden,
          const OptTensor& shift, double temperature, double dropout, const std::optional<int64_t>& seed) {
  a.type = dtype_of(products, "adapter_fusion: products");
  HFK_CHECK(products.dim() == 2, "adapter_fusion: products: expected 2 axes, got ", products.dim());
  a.tokens = products.size(0), a.M = products.size(1), a.adapters = int64_t(hidden.size());
  a.products = same(products, products, a.tokens, a.M, "products");
  int64_t sum = 0;
  for (const Tensor& z : hidden) {
    HFK_CHECK(z.dim() == 2, "adapter_fusion: hidden: expected 2 axes, got ", z.dim());
    lists.hidden.push_back(same(z, products, a.tokens, z.size(1), "hidden"));
    lists.ranks.push_back(z.size(1));
    sum += z.size(1);
  }
  HFK_CHECK(a.adapters > 0 && (a.M == sum || a.M == sum + a.adapters), "adapter_fusion: products: expected ", sum,
            " columns (or ", a.adapters, " more for biases), got ", a.M);
  a.biased = a.M != sum;
  a.hidden = lists.hidden.data(), a.ranks = lists.ranks.data();
  if (shift.has_value()) a.shift = same(*shift, products, a.tokens, 1, "shift");
  a.temperature = float(temperature), a.dropout = dropout;
  a.dropout_on = seed.has_value(), a.seed = seed.value_or(0);
}

void fusion_forward(const Tensor& products, std::vector<Tensor> hidden, OptTensor shift, double temperature, double dropout,
                    std::optional<int64_t> seed, Tensor weighted, Tensor weights) {
  AdapterFusionForwardArgs a = {};
  FusionLists lists;
  fill(a, lists, products, hidden, shift, temperature, dropout, seed);
  a.weighted = same(weighted, products, a.tokens, a.M, "weighted");
  a.weights = statistics(weights, a.tokens, a.adapters, "weights");
  kernels().adapter_fusion_forward(a);
}

void fusion_backward(const Tensor& grad_weighted, OptTensor grad_weights, const Tensor& weights, const Tensor& products,
                     std::vector<Tensor> hidden, OptTensor shift, double temperature, double dropout,
                     std::optional<int64_t> seed, Tensor grad_products, std::vector<Tensor> grad_hidden,
                     OptTensor grad_shift) {
  AdapterFusionBackwardArgs a = {};
  FusionLists lists;
  fill(a, lists, products, hidden, shift, temperature, dropout, seed);
  a.grad_weighted = same(grad_weighted, products, a.tokens, a.M, "grad_weighted");
  if (grad_weights.has_value()) a.grad_weights = statistics(*grad_weights, a.tokens, a.adapters, "grad_weights");
  a.weights = statistics(weights, a.tokens, a.adapters, "weights");
  a.grad_products = same(grad_products, products, a.tokens, a.M, "grad_products");
  std::vector<void*> grads;
  HFK_CHECK(grad_hidden.empty() || grad_hidden.size() == hidden.size(),
            "adapter_fusion: grad_hidden: expected none or one an adapter");
  for (size_t n = 0; n < grad_hidden.size(); n++)
    grads.push_back(same(grad_hidden[n], products, a.tokens, lists.ranks[n], "grad_hidden"));
  if (!grads.empty()) a.grad_hidden = grads.data();
  if (grad_shift.has_value()) a.grad_shift = same(*grad_shift, products, a.tokens, 1, "grad_shift");
  kernels().adapter_fusion_backward(a);
}

}  // namespace
}  // namespace hfk

HFK_KERNELS(CPU, m) {
  m.impl("adapter_fusion_forward", TORCH_BOX(&hfk::fusion_forward));
  m.impl("adapter_fusion_backward", TORCH_BOX(&hfk::fusion_backward));
}
