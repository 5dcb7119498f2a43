// The namespace of the ops, and what keeps the library loadable where glibc is old.
#include "library.h"

#include <cstddef>

// The name that is compiled in. -DHFK_NAMESPACE='"other"' gives another.
#ifndef HFK_NAMESPACE
#define HFK_NAMESPACE "hfadapt_cpu"
#endif

namespace hfk {
namespace {

// tools/kernel_hub.py finds the mark in the built file and writes a name behind it. Volatile: what is compiled may not
// take the name for known.
constexpr char kMark[] = "HFK_NAMESPACE=";
constexpr size_t kBytes = 96;
__attribute__((used)) const volatile char kSlot[kBytes] = "HFK_NAMESPACE=" HFK_NAMESPACE;
static_assert(sizeof("HFK_NAMESPACE=" HFK_NAMESPACE) <= kBytes, "HFK_NAMESPACE is too long");

struct Name {
  char text[kBytes] = {};
  Name() {
    for (size_t i = sizeof(kMark) - 1; i + 1 < kBytes; ++i) text[i - (sizeof(kMark) - 1)] = kSlot[i];
  }
};

}  // namespace

const char* ops_namespace() {
  static const Name name;
  return name.text;
}

}  // namespace hfk

#if defined(__linux__)
// Inline code of libstdc++ (the counts of shared_ptr) asks this variable of glibc 2.32 whether one thread runs alone. With
// one of our own, hidden, the library asks glibc for nothing that 2.28 lacks; zero means that others may run.
extern "C" {
__attribute__((visibility("hidden"))) extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}
#endif
