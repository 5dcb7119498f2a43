#!/bin/sh
# Builds the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer into a folder of their own and runs the
# kernel tests on them, small shapes only. With `valgrind` on the PATH it also runs one tiny case under it (avx2: valgrind
# knows no AVX-512). Usage: tools/asan_kernels.sh [python]
set -eu
python=${1:-python}
root=$(cd "$(dirname "$0")/.." && pwd)
work=${ASAN_DIR:-$(mktemp -d)}
mkdir -p "$work"
cp -R "$root/csrc" "$root/kernels" "$root/setup.py" "$root/pyproject.toml" "$root/tests" "$root/hfadapt" "$work/"
rm -f "$work/kernels/hfadapt_kernels/"_C*.so
cd "$work"
HFADAPT_BUILD_CPP=1 HFADAPT_SANITIZE=address,undefined "$python" setup.py build_ext --inplace
compiler=${CXX:-c++}
export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libubsan.so)"
# Python and torch keep memory on purpose until the process ends, and torch reads beyond small buffers in its own code.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export OMP_NUM_THREADS=1 PYTHONPATH="$work/kernels" HFADAPT_POISON=1
"$python" tests/kernels/asan/run_small_cases.py
unset LD_PRELOAD
if command -v valgrind >/dev/null; then
  rm -f kernels/hfadapt_kernels/_C*.so
  HFADAPT_BUILD_CPP=1 "$python" setup.py build_ext --inplace
  HFADAPT_ISA=avx2 PYTHONMALLOC=malloc valgrind --error-exitcode=9 --errors-for-leak-kinds=none --leak-check=no \
    --suppressions=tests/kernels/asan/valgrind.supp "$python" tests/kernels/asan/run_small_cases.py one
fi
echo "no memory error found"
