"""The C++ library loads on every machine that manylinux_2_28 names, whatever machine it was compiled on."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest

from hfadapt_kernels import native
from tools.glibc_limits import beyond, newer_symbols, other_libraries

LIBRARY = Path(native.__file__).with_name("_C.abi3.so")
ON_LINUX = sys.platform == "linux" and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not ON_LINUX, reason="the limits are those of Linux on x86-64")
@pytest.mark.skipif(not LIBRARY.is_file(), reason="the C++ library was not built")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump, of binutils")
def test_the_library_asks_for_nothing_that_glibc_2_28_lacks() -> None:
    assert beyond(LIBRARY) == []


TABLE = """
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.2.5) memmove
0000000000000000      DF *UND*\t0000000000000000 (GLIBC_2.34) pthread_mutex_trylock
0000000000000000      DO *UND*\t0000000000000000  GLIBC_2.32  __libc_single_threaded
0000000000000000      DF *UND*\t0000000000000000 (GLIBCXX_3.4.24) of_the_limit
0000000000000000      DF *UND*\t0000000000000000 (GLIBCXX_3.4.29) beyond_it
0000000000000000      DF *UND*\t0000000000000000 (LIBFOO_1.0) foreign
0000000000000000      DF *UND*\t0000000000000000  Base        aoti_torch_library_def
0000000000001140 g    DF .text\t0000000000000022 (GLIBC_2.99) our_own
"""


def test_symbols_of_newer_versions_are_found_by_number() -> None:
    found = newer_symbols(TABLE)
    assert [line.split()[0] for line in found] == [
        "pthread_mutex_trylock",
        "__libc_single_threaded",
        "beyond_it",
        "foreign",
    ]
    assert found[0] == "pthread_mutex_trylock of GLIBC_2.34, the limit is 2.28"


def test_libraries_of_neither_the_system_nor_torch_are_found() -> None:
    headers = "  NEEDED               libc.so.6\n  NEEDED               libgomp.so.1\n  NEEDED   libtorch_cpu.so\n"
    assert other_libraries(headers) == ["library libgomp.so.1"]
