// frozen_linear: the packed product with bias and activation in the epilogue.
#pragma once
#include "../../base/math.h"
#include "../../gemm/gemm.h"
#include "args.h"

namespace hfk {
namespace HFK_NAMESPACE {

// The element type that panels of bfloat16 and int8 are multiplied in.
typedef Elem<bf16> LowElem;

static void frozen_linear_size(const LinearSizeArgs& a) {
  switch (a.weight_type) {
    case WeightType::f32: *a.bytes = packed_size<float>(a.K, a.N) * 4; break;
    case WeightType::bf16: *a.bytes = packed_size<LowElem>(a.K, a.N) * int64_t(sizeof(LowElem)); break;
    case WeightType::int8: *a.bytes = packed_size<LowElem>(a.K, a.N); break;
  }
}

// int8 panels have the layout of LowElem panels, one byte an element.
template <class T>
static void pack_int8_panel(int64_t K, int64_t n0, int64_t N, const T* w, const LinearPackArgs& a, int8_t* d) {
  const int64_t Kp = padded_k<LowElem>(K);
  for (int64_t k = 0; k < Kp; k++)
    for (int64_t n = 0; n < PW; n++) {
      int8_t q = 0;
      if (k < K && n0 + n < N) {
        float s = a.k_scale ? a.k_scale[k] : a.scale[n0 + n];
        float r = s > 0.f ? std::nearbyint(to_float(w[k * a.sk + (n0 + n) * a.sn]) / s) : 0.f;
        q = int8_t(r < -127.f ? -127.f : r > 127.f ? 127.f : r);
      }
      const int64_t at = sizeof(LowElem) == 2 ? pair_index(Kp, k, n) : k * PW + n;
      d[at] = q;
    }
}

template <class T>
static void frozen_linear_pack_t(const LinearPackArgs& a) {
  const T* w = static_cast<const T*>(a.weight);
  parallel(ceil_div(a.N, PW), [&](int64_t p0, int64_t p1) {
    switch (a.weight_type) {
      case WeightType::f32: pack<float>(a.K, a.N, w, a.sk, a.sn, static_cast<float*>(a.packed), p0, p1); break;
      case WeightType::bf16:
        if constexpr (sizeof(LowElem) == 2) {
          pack<LowElem>(a.K, a.N, w, a.sk, a.sn, static_cast<LowElem*>(a.packed), p0, p1);
        } else {
          // Without a bf16 product the panels are floats that hold the rounded weights.
          float* d = static_cast<float*>(a.packed);
          pack<float>(a.K, a.N, w, a.sk, a.sn, d, p0, p1);
          for (int64_t i = p0 * panel_size<float>(a.K); i < p1 * panel_size<float>(a.K); i++) {
            bf16 r;
            from_float(d[i], r);
            d[i] = to_float(r);
          }
        }
        break;
      case WeightType::int8:
        for (int64_t p = p0; p < p1; p++)
          pack_int8_panel(a.K, p * PW, a.N, w, a, static_cast<int8_t*>(a.packed) + p * panel_size<LowElem>(a.K));
        break;
    }
  });
}
static void frozen_linear_pack(const LinearPackArgs& a) {
  a.type == DType::f32 ? frozen_linear_pack_t<float>(a) : frozen_linear_pack_t<bf16>(a);
}

// count is a multiple of VL. Every int8 is exact in bf16, so rounding never happens here.
static HFK_INLINE void widen_int8(int64_t count, const int8_t* s, LowElem* d) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < count; i += 16)
    store(d + i, (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i)))));
#else
  for (int64_t i = 0; i < count; i++) from_float(float(s[i]), d[i]);
#endif
}

template <class T>
static __attribute__((noinline)) void linear_epilogue(const LinearArgs& a, int64_t m0, int64_t rows, int64_t n0,
                                                      const float* C) {
  T* out = static_cast<T*>(a.out) + m0 * a.N;
  const int64_t columns = imin(PW, a.N - n0);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n += VL) {
      V v = load(C + m * PW + n);
      if (a.scale) v *= load_first(a.scale + n0 + n, columns - n);
      if (a.bias) v += load_first(a.bias + n0 + n, columns - n);
      if (a.activation != kIdentity) v = activate(a.activation, v);
      store_first(out + m * a.N + n0 + n, v, columns - n);
    }
}

#if defined(__AMX_TILE__)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif

// Rows of results that are computed before they are stored: whole tiles, and with a piece of the panel they fill the
// first-level cache.
template <class E>
constexpr int64_t kLinearRows = sizeof(E) == 2 && kHasTiles ? 64 : 48;

// The rows of x are cut into `blocks` of whole units. A block stays in the second-level cache together with one panel of W,
// and all threads get as many rows.
struct LinearBlocks {
  int64_t blocks, units, unit;
  int64_t start(int64_t b) const { return units * b / blocks * unit; }
};
template <class E>
static LinearBlocks linear_blocks(int64_t M, int64_t K) {
  // Processors with tiles have 2 MiB of second-level cache, others as little as 1 MiB.
  const int64_t fits = (int64_t(kHasTiles && sizeof(E) == 2 ? 1200 : 640) << 10) / (imax(K, 1) * int64_t(sizeof(E)));
  const bool few = M < 384 * num_threads();
  const int64_t most = few ? 96 : kHasTiles && sizeof(E) == 2 ? 512 : 192, unit = few ? 16 : kLinearRows<E>;
  const int64_t wanted = imax(48, imin(fits, most)), units = ceil_div(M, unit);
  const int64_t blocks = M <= wanted ? 1 : round_up(ceil_div(M, wanted), num_threads());
  return {imin(blocks, units), units, unit};
}

template <class T, class E>
static void frozen_linear_forward_t(const LinearArgs& a) {
  const LinearBlocks cut = linear_blocks<E>(a.M, a.K);
  const int64_t panels = ceil_div(a.N, PW), blocks = cut.blocks;
  // With few row blocks the panels are shared out as well.
  const int64_t cuts = blocks >= 2 * num_threads() ? 1 : imin(panels, ceil_div(4 * num_threads(), imax(blocks, 1)));
  parallel(blocks * cuts, [&](int64_t i0, int64_t i1) {
    float* C = scratch<float>(2, kLinearRows<E> * PW);
    for (int64_t i = i0; i < i1; i++) {
      const int64_t b = i / cuts, c = i % cuts, m0 = cut.start(b), rows = imin(cut.start(b + 1), a.M) - m0;
      const T* x = static_cast<const T*>(a.x) + m0 * a.x_stride;
      int64_t am;
      const E* A =
          rows_for_product<E>(rows, a.K, x, a.x_stride, nullptr, scratch<E>(0, round_up(rows, 16) * padded_k<E>(a.K)), &am);
      for (int64_t p = panels * c / cuts; p < panels * (c + 1) / cuts; p++) {
        const E* B;
        if (a.weight_type == WeightType::int8) {
          E* wide = scratch<E>(1, panel_size<E>(a.K));
          widen_int8(panel_size<E>(a.K), static_cast<const int8_t*>(a.packed) + p * panel_size<E>(a.K),
                     reinterpret_cast<LowElem*>(wide));
          B = wide;
        } else {
          B = static_cast<const E*>(a.packed) + p * panel_size<E>(a.K);
        }
        const int64_t columns = imin(PW, a.N - p * PW);
        for (int64_t m = 0; m < rows; m += kLinearRows<E>) {
          const int64_t some = imin(kLinearRows<E>, rows - m);
          gemm_store(some, columns, a.K, A + m * am, am, B, C, PW);
          linear_epilogue<T>(a, m0 + m, some, p * PW, C);
        }
      }
    }
  });
}

static void frozen_linear_forward(const LinearArgs& a) {
  if (a.weight_type == WeightType::f32)
    a.type == DType::f32 ? frozen_linear_forward_t<float, float>(a) : frozen_linear_forward_t<bf16, float>(a);
  else
    a.type == DType::f32 ? frozen_linear_forward_t<float, LowElem>(a) : frozen_linear_forward_t<bf16, LowElem>(a);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
