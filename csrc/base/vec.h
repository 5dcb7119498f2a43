// One vector type V of VL floats per instruction set, written with GCC vector extensions; intrinsics only where the
// extension has no word for it. Every header of a kernel is
// compiled once per instruction set, each time in a namespace of its own.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <cmath>

#include "common.h"

// isa/*.cpp name the namespace. An editor that reads one header alone does not.
#if !defined(HFK_NAMESPACE)
#define HFK_NAMESPACE alone
#endif

#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wunused-function"
// gcc 12 reports its own _mm512_undefined_* headers.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace hfk {
namespace HFK_NAMESPACE {

// HFK_VECTOR_LENGTH: a test tries another processor's on this one (tests/kernels/emulated).
#if defined(HFK_VECTOR_LENGTH)
constexpr int VL = HFK_VECTOR_LENGTH;
#elif defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif
typedef float V __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t VU __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t VH __attribute__((vector_size(VL * 2), aligned(2), may_alias));

static HFK_INLINE V zero() { return V{}; }
static HFK_INLINE V broadcast(float x) { return x - V{}; }
static HFK_INLINE V load(const float* p) { return *reinterpret_cast<const V*>(p); }
static HFK_INLINE void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
// Of a NaN and a number the second argument: a bound that must let NaN through stands first.
static HFK_INLINE V vmax(V a, V b) { return a > b ? a : b; }
static HFK_INLINE V vmin(V a, V b) { return a < b ? a : b; }
static HFK_INLINE V vabs(V a) { return (V)((VI)a & 0x7fffffff); }
static HFK_INLINE V vcopysign(V magnitude, V sign) {
  return (V)(((VI)magnitude & 0x7fffffff) | ((VI)sign & int32_t(0x80000000)));
}

static HFK_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

static HFK_INLINE V load(const bf16* p) {
#if defined(__AVX512F__)
  return (V)_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#else
  VH h = *reinterpret_cast<const VH*>(p);
  return (V)(__builtin_convertvector(h, VU) << 16);
#endif
}
static HFK_INLINE VU bf16_bits(V v) {
  VU u = (VU)v;
  VU rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return (VI)(v != v) ? (VU)((VU{} + 0x7fc0)) : rounded;
}
static HFK_INLINE void store(bf16* p, V v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#elif defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bf16_bits(v)));
#else
  *reinterpret_cast<VH*>(p) = __builtin_convertvector(bf16_bits(v), VH);
#endif
}

// The first n (0 < n <= VL) elements; the rest of the vector is 0 and memory beyond is not touched.
#if defined(__AVX512F__)
static HFK_INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1); }
static HFK_INLINE V load_lanes(__mmask16 lanes, const float* p) { return (V)_mm512_maskz_loadu_ps(lanes, p); }
static HFK_INLINE V load_lanes(__mmask16 lanes, const bf16* p) {
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16);
}
template <class T>
static HFK_INLINE V load_first(const T* p, int64_t n) {
  return n >= VL ? load(p) : load_lanes(first_lanes(n), p);
}
static HFK_INLINE void store_first(float* p, V v, int64_t n) {
  n >= VL ? store(p, v) : _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v);
}
static HFK_INLINE void store_first(bf16* p, V v, int64_t n) {
  if (n >= VL) return store(p, v);
  bf16 buffer[VL];
  store(buffer, v);
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(buffer)));
}
#else
template <class T>
static HFK_INLINE V load_first(const T* p, int64_t n) {
  if (n >= VL) return load(p);
  float buffer[VL] = {};
  for (int64_t i = 0; i < n; i++) buffer[i] = to_float(p[i]);
  return load(buffer);
}
template <class T>
static HFK_INLINE void store_first(T* p, V v, int64_t n) {
  if (n >= VL) return store(p, v);
  float buffer[VL];
  store(buffer, v);
  for (int64_t i = 0; i < n; i++) from_float(buffer[i], p[i]);
}
#endif

static HFK_INLINE float hsum(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float b[VL];
  store(b, v);
  for (int w = VL / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) b[i] += b[i + w];
  return b[0];
#endif
}
static HFK_INLINE float hmax(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float b[VL];
  store(b, v);
  float m = b[0];
  for (int i = 1; i < VL; i++) m = b[i] > m ? b[i] : m;
  return m;
#endif
}

static HFK_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace HFK_NAMESPACE
}  // namespace hfk
