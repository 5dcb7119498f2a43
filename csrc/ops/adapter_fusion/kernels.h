// adapter_fusion: scores, dropout, softmax over the adapters and weighting, one pass over each token's M columns.
#pragma once
#include "../../base/math.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

template <class T>
static HFK_INLINE float fusion_dot(const T* a, const T* b, int64_t n) {
  V sum = zero();
  int64_t i = 0;
  for (; i + VL <= n; i += VL) sum = fma(load(a + i), load(b + i), sum);
  if (i < n) sum = fma(load_first(a + i, n - i), load_first(b + i, n - i), sum);
  return hsum(sum);
}
template <class T>
static HFK_INLINE void fusion_scale(const T* s, float factor, int64_t n, T* d) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(d + i, load(s + i) * factor);
  if (i < n) store_first(d + i, load_first(s + i, n - i) * factor, n - i);
}
// 0 or 1 / (1 - p) for adapter n of a token; 1 without dropout.
static HFK_INLINE float fusion_keep(const AdapterFusionArgs& a, const Dropout& drop, uint32_t hash, int64_t n) {
  if (!a.dropout_on) return 1.f;
  return mix_bits<uint32_t>(uint32_t(n) * 0x9e3779b9u + hash) >= drop.threshold ? drop.scale : 0.f;
}

template <class T>
static void adapter_fusion_forward_t(const AdapterFusionForwardArgs& a) {
  const int64_t N = a.adapters, block = 32;
  const Dropout drop = make_dropout(a.seed, a.dropout);
  parallel(ceil_div(a.tokens, block), [&](int64_t b0, int64_t b1) {
    float* scores = scratch<float>(0, round_up(N, VL));
    for (int64_t t = b0 * block; t < imin(a.tokens, b1 * block); t++) {
      const T* y = static_cast<const T*>(a.products) + t * a.M;
      T* out = static_cast<T*>(a.weighted) + t * a.M;
      const float shift = a.shift ? to_float(static_cast<const T*>(a.shift)[t]) : 0.f;
      const uint32_t hash = dropout_row(drop, uint32_t(t));
      float top = -__builtin_inff();
      for (int64_t n = 0, at = 0; n < N; at += a.ranks[n++]) {
        float s = fusion_dot(y + at, static_cast<const T*>(a.hidden[n]) + t * a.ranks[n], a.ranks[n]) + shift;
        if (a.biased) s += to_float(y[a.M - N + n]);
        scores[n] = s * fusion_keep(a, drop, hash, n) / a.temperature;
        top = scores[n] > top ? scores[n] : top;
      }
      for (int64_t n = N; n < round_up(N, VL); n++) scores[n] = -__builtin_inff();
      V total = zero();
      for (int64_t n = 0; n < N; n += VL) {
        V e = vexp(load(scores + n) - top);
        store(scores + n, e);
        total += e;
      }
      const float factor = 1.f / hsum(total);
      for (int64_t n = 0, at = 0; n < N; at += a.ranks[n++]) {
        const float p = scores[n] * factor;
        a.weights[t * N + n] = p;
        fusion_scale(static_cast<const T*>(a.hidden[n]) + t * a.ranks[n], p, a.ranks[n], out + at);
        if (a.biased) from_float(p, out[a.M - N + n]);
      }
    }
  });
}

template <class T>
static void adapter_fusion_backward_t(const AdapterFusionBackwardArgs& a) {
  const int64_t N = a.adapters, block = 32;
  const Dropout drop = make_dropout(a.seed, a.dropout);
  parallel(ceil_div(a.tokens, block), [&](int64_t b0, int64_t b1) {
    float* gradient = scratch<float>(0, N);
    for (int64_t t = b0 * block; t < imin(a.tokens, b1 * block); t++) {
      const T *y = static_cast<const T*>(a.products) + t * a.M, *g = static_cast<const T*>(a.grad_weighted) + t * a.M;
      const float* p = a.weights + t * N;
      T* dy = static_cast<T*>(a.grad_products) + t * a.M;
      const uint32_t hash = dropout_row(drop, uint32_t(t));
      float delta = 0.f, moved = 0.f, highest = -1.f, base = 0.f;
      for (int64_t n = 0, at = 0; n < N; at += a.ranks[n++]) {
        float d = fusion_dot(g + at, static_cast<const T*>(a.hidden[n]) + t * a.ranks[n], a.ranks[n]);
        if (a.biased) d += to_float(g[a.M - N + n]);
        if (a.grad_weights) d += a.grad_weights[t * N + n];
        gradient[n] = d;
        if (p[n] > highest) highest = p[n], base = d;
      }
      // p (d - sum p d) does not change when all d move by one number. Moved by the likeliest adapter's, nothing cancels
      // where that one takes nearly all.
      for (int64_t n = 0; n < N; n++) {
        gradient[n] -= base;
        delta += p[n] * gradient[n];
      }
      for (int64_t n = 0, at = 0; n < N; at += a.ranks[n++]) {
        const int64_t R = a.ranks[n];
        const float s = p[n] * (gradient[n] - delta) * fusion_keep(a, drop, hash, n) / a.temperature;
        moved += s;
        fusion_scale(static_cast<const T*>(a.hidden[n]) + t * R, s, R, dy + at);
        if (a.biased) from_float(s, dy[a.M - N + n]);
        if (a.grad_hidden) {
          T* dz = static_cast<T*>(a.grad_hidden[n]) + t * R;
          for (int64_t i = 0; i < R; i += VL)
            store_first(dz + i, load_first(g + at + i, R - i) * p[n] + load_first(y + at + i, R - i) * s, R - i);
        }
      }
      if (a.grad_shift) from_float(moved, static_cast<T*>(a.grad_shift)[t]);
    }
  });
}

static void adapter_fusion_forward(const AdapterFusionForwardArgs& a) {
  a.type == DType::f32 ? adapter_fusion_forward_t<float>(a) : adapter_fusion_forward_t<bf16>(a);
}
static void adapter_fusion_backward(const AdapterFusionBackwardArgs& a) {
  a.type == DType::f32 ? adapter_fusion_backward_t<float>(a) : adapter_fusion_backward_t<bf16>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
