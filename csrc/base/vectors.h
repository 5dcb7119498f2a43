// Loops over rows in vectors, the last of which may be partial.
#pragma once
#include "vec.h"

namespace hfk {
namespace HFK_NAMESPACE {

template <bool B>
struct Flag {
  static constexpr bool value = B;
};
// body(n, full) over [0, D) in vectors; the last one may be partial (full = false).
template <class F>
static HFK_INLINE void for_vectors(int64_t D, F&& body) {
  int64_t n = 0;
  for (; n + VL <= D; n += VL) body(n, Flag<true>());
  if (n < D) body(n, Flag<false>());
}
template <bool full, class T>
static HFK_INLINE V get(const T* p, int64_t left) {
  return full ? load(p) : load_first(p, left);
}
template <bool full, class T>
static HFK_INLINE void put(T* p, V v, int64_t left) {
  full ? store(p, v) : store_first(p, v, left);
}

}  // namespace HFK_NAMESPACE
}  // namespace hfk
