// Element-wise functions on V: exp, the normal distribution, tanh, the activations with their derivatives, and the
// dropout hash. Errors are a few units in the last place on the ranges where the result matters.
#pragma once
#include "vec.h"

namespace hfk {
namespace HFK_NAMESPACE {

static HFK_INLINE V vexp(V x) {
  V clamped = vmin(broadcast(88.7f), vmax(broadcast(-87.3f), x));
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  V magic = broadcast(12582912.f);
  V shifted = fma(clamped, broadcast(1.44269504088896341f), magic);
  V n = shifted - magic;
  V r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  V p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.f);
  // 2^n in two factors: n reaches 128, whose exponent alone would overflow.
  VI whole = (VI)shifted - (VI)magic, half = whole >> 1;
  V low = (V)((half + 127) << 23), high = (V)((whole - half + 127) << 23);
  V y = p * low * high;
  return x < broadcast(-103.f) ? zero() : y;
}

// The normal distribution: density is exp(-x^2 / 2), below is its integral up to x, both with a relative error of a few
// units in the last place in the left tail too, where 1 + erf(x / sqrt 2) would cancel.
struct Normal {
  V density, below;
};
static HFK_INLINE Normal normal(V x) {
  // Beyond 14.5 the tail is 0 in float32; without the bound a large square would be infinite.
  V a = vmin(broadcast(14.5f), vabs(x)), square = a * a;
  // What the square lost to rounding: an error of the exponent is a relative one of its exponential.
  V lost = fma(a, a, -square);
  V e = vexp(-0.5f * square);
  e = fma(-0.5f * lost, e, e);
  // erfc(a / sqrt 2) / 2 = exp(-a^2 / 2) p(1 / (1 + a / 4)), p fitted (relative minimax) on 0 <= a <= 13.5.
  V s = 1.f / fma(broadcast(0.25f), a, broadcast(1.f)) - 0.5f;
  V p = broadcast(0.034477293f);
  p = fma(p, s, broadcast(-0.043895088f));
  p = fma(p, s, broadcast(-0.08416563f));
  p = fma(p, s, broadcast(0.03230608f));
  p = fma(p, s, broadcast(0.27191663f));
  p = fma(p, s, broadcast(0.49384058f));
  p = fma(p, s, broadcast(0.5736547f));
  p = fma(p, s, broadcast(0.49751693f));
  p = fma(p, s, broadcast(0.3407955f));
  p = fma(p, s, broadcast(0.09441064f));
  V tail = e * p;
  return {e, x < zero() ? tail : 1.f - tail};
}

// Rational approximation x P(x^2) / Q(x^2) on a clamped range.
static HFK_INLINE V vtanh(V x) {
  V c = vmin(broadcast(7.99881172180175781f), vmax(broadcast(-7.99881172180175781f), x)), s = c * c;
  V p = broadcast(-2.76076847742355e-16f);
  p = fma(p, s, broadcast(2.00018790482477e-13f));
  p = fma(p, s, broadcast(-8.60467152213735e-11f));
  p = fma(p, s, broadcast(5.12229709037114e-08f));
  p = fma(p, s, broadcast(1.48572235717979e-05f));
  p = fma(p, s, broadcast(6.37261928875436e-04f));
  p = fma(p, s, broadcast(4.89352455891786e-03f));
  V q = broadcast(1.19825839466702e-06f);
  q = fma(q, s, broadcast(1.18534705686654e-04f));
  q = fma(q, s, broadcast(2.26843463243900e-03f));
  q = fma(q, s, broadcast(4.89352518554385e-03f));
  return c * p / q;
}

// Codes are those of hfadapt_kernels/activations.py.
enum Activation : int { kIdentity = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4, kTanh = 5 };

static HFK_INLINE V activate(int code, V x) {
  switch (code) {
    case kRelu: return vmax(zero(), x);
    case kGelu: return x * normal(x).below;
    // (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), which does not cancel for large negative u.
    case kGeluTanh: return x / (1.f + vexp(-1.59576912160573071f * (x + 0.044715f * x * x * x)));
    case kSilu: return x / (1.f + vexp(-x));
    case kTanh: return vtanh(x);
    default: return x;
  }
}
static HFK_INLINE V activate_derivative(int code, V x) {
  switch (code) {
    case kRelu: return x <= zero() ? zero() : broadcast(1.f);  // as torch: what came to a NaN goes on
    case kGelu: {
      Normal f = normal(x);
      return f.below + x * 0.39894228040143268f * f.density;
    }
    case kGeluTanh: {
      V s = 1.f / (1.f + vexp(-1.59576912160573071f * (x + 0.044715f * x * x * x)));
      return s + x * s * (1.f - s) * (1.59576912160573071f * (1.f + 0.134145f * x * x));
    }
    case kSilu: {
      V s = 1.f / (1.f + vexp(-x));
      return s * (1.f + x * (1.f - s));
    }
    case kTanh: {
      V t = vtanh(x);
      return 1.f - t * t;
    }
    default: return broadcast(1.f);
  }
}

// 32 random bits for (seed, row, column): the arithmetic of hfadapt_kernels/dropout.py.
struct Dropout {
  uint32_t seed_low, seed_high, threshold;
  float scale;  // 1 / (1 - p)
};
static HFK_INLINE Dropout make_dropout(int64_t seed, double p) {
  double t = p * 4294967296.0 + 0.5;
  return {uint32_t(uint64_t(seed)), uint32_t(uint64_t(seed) >> 32), t >= 4294967295.0 ? 0xffffffffu : uint32_t(t),
          float(1.0 / (1.0 - p))};
}
template <class U>
static HFK_INLINE U mix_bits(U x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}
static HFK_INLINE uint32_t dropout_row(const Dropout& d, uint32_t row) { return mix_bits(row ^ d.seed_low) ^ d.seed_high; }
// 0 or 1 / (1 - p) for columns [col, col + VL) of a row whose dropout_row is given.
static HFK_INLINE V dropout_factor(const Dropout& d, uint32_t row_hash, int64_t col) {
  VU lane;
  for (int i = 0; i < VL; i++) lane[i] = uint32_t(i);
  VU h = mix_bits<VU>(((lane + uint32_t(col)) * 0x9e3779b9u) + row_hash);
  return h >= d.threshold ? broadcast(d.scale) : zero();
}

constexpr double kExactLog2e = 1.44269504088896341;
constexpr float kLog2e = float(kExactLog2e);

// 2^x for x <= 0 and -inf; NaN stays NaN. `fine` has float32 accuracy, else 3e-6: enough under bfloat16 rounding. Below
// 2^-125 it is 0, without computing anything smaller: a subnormal result costs more than a hundred cycles.
template <bool fine>
static HFK_INLINE V exp2_nonpositive(V x) {
  const V lowest = broadcast(-125.f);
#if defined(__AVX512F__)
  const __mmask16 seen = _mm512_cmp_ps_mask((__m512)x, (__m512)lowest, _CMP_NLT_UQ);
  V n = (V)_mm512_maskz_roundscale_ps(seen, (__m512)x, 8), f = (V)_mm512_maskz_sub_ps(seen, (__m512)x, (__m512)n), p;
#else
  V bounded = x < lowest ? lowest : x;
  V magic = broadcast(12582912.f), shifted = bounded + magic, n = shifted - magic, f = bounded - n, p;
#endif
  if (fine) {
    p = fma(broadcast(1.534581038e-4f), f, broadcast(1.339993121e-3f));
    p = fma(p, f, broadcast(9.618488963e-3f));
    p = fma(p, f, broadcast(5.550328777e-2f));
    p = fma(p, f, broadcast(0.2402264689f));
    p = fma(p, f, broadcast(0.6931472057f));
    p = fma(p, f, broadcast(1.f));
  } else {
    p = fma(broadcast(9.570100019e-3f), f, broadcast(5.591786017e-2f));
    p = fma(p, f, broadcast(0.2402474487f));
    p = fma(p, f, broadcast(0.6931218148f));
    p = fma(p, f, broadcast(0.9999992614f));
  }
#if defined(__AVX512F__)
  return (V)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)n);
#else
  V y = (V)(((VI)shifted - (VI)magic + 127) << 23) * p;
  return x < lowest ? zero() : y;
#endif
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
