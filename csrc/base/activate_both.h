// An activation and its derivative, which share most of their work. Results of type bfloat16 are rounded to three digits,
// and are computed to four.
#pragma once
#include "math.h"

namespace hfk {
namespace HFK_NAMESPACE {

struct Activated {
  V value, slope;
};

// normal() with relative errors below 2e-4: Phi(-a) exp(a^2 / 2) is a polynomial of 1 / (1 + a / 4) here, fitted for a up to
// 14.5, beyond which exp(-a^2 / 2) is 0 in float32.
static HFK_INLINE Normal rough_normal(V x) {
  const V a = vmin(broadcast(14.5f), vabs(x)), d = fma(broadcast(0.25f), a, broadcast(1.f));
  const V e = exp2_nonpositive<false>(a * a * (-0.5f * kLog2e));
#if defined(__AVX512F__)
  const V s = (V)_mm512_rcp14_ps((__m512)d) - 0.5f;
#else
  const V s = 1.f / d - 0.5f;
#endif
  V p = broadcast(0.2485833f);
  p = fma(p, s, broadcast(0.49851933f));
  p = fma(p, s, broadcast(0.5756529f));
  p = fma(p, s, broadcast(0.4973764f));
  p = fma(p, s, broadcast(0.34075212f));
  p = fma(p, s, broadcast(0.09441067f));
  const V tail = e * p;
  return {e, x < zero() ? tail : 1.f - tail};
}

template <class T>
static HFK_INLINE Activated activate_both(int code, V x) {
  switch (code) {
    case kGelu: {
      const Normal f = sizeof(T) == 4 ? normal(x) : rough_normal(x);
      return {x * f.below, f.below + x * 0.39894228040143268f * f.density};
    }
    default: return {activate(code, x), activate_derivative(code, x)};
  }
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
