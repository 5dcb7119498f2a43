#!/bin/sh
# Builds the C++ kernels with AddressSanitizer into a folder of their own (the generic instruction set and AVX2;
# HFADAPT_MAX_ISA=amx: all of them; HFADAPT_SANITIZE=address,undefined: two sanitizers, which takes twice as long) and
# runs the small cases of tests/kernels/asan on them. With `valgrind` on the PATH one more small case, in C++, runs under
# it.
# Usage: tools/asan_kernels.sh [python]
set -eu
python=${1:-python}
root=$(cd "$(dirname "$0")/.." && pwd)
work=${ASAN_DIR:-$(mktemp -d)}
mkdir -p "$work"
cp -R "$root/csrc" "$root/kernels" "$root/setup.py" "$root/pyproject.toml" "$root/tests" "$root/hfadapt" "$work/"
rm -f "$work/kernels/hfadapt_kernels/"_C*.so
cd "$work"
HFADAPT_BUILD_CPP=1 HFADAPT_SANITIZE=${HFADAPT_SANITIZE:-address} HFADAPT_MAX_ISA=${HFADAPT_MAX_ISA:-avx2} \
  "$python" setup.py build_ext --inplace
compiler=${CXX:-c++}
export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)"
# Python and torch keep memory on purpose until the process ends, and torch reads beyond small buffers in its own code.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export OMP_NUM_THREADS=1 PYTHONPATH="$work/kernels" HFADAPT_POISON=1
"$python" tests/kernels/asan/run_small_cases.py
unset LD_PRELOAD
if command -v valgrind >/dev/null; then
  # Without torch, which alone needs gigabytes under valgrind; avx2, because valgrind knows no AVX-512.
  "$compiler" -std=c++17 -O1 -g -w -DHFK_X86 -mavx2 -mfma -mf16c -c csrc/isa/avx2.cpp -o isa_avx2.o
  "$compiler" -std=c++17 -O1 -g -w tests/kernels/asan/small_case.cpp csrc/base/rows.cpp isa_avx2.o -o small_case
  valgrind -q --error-exitcode=9 --leak-check=no ./small_case
fi
echo "no memory error found"
