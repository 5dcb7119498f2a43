"""int8 products in the layouts of other processors: compiled and run here with their instructions written out."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "emulated" / "int8_ways.cpp"
COMPILER = os.environ.get("CXX", "c++")

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the headers are x86-64's"),
]


def test_wide_vectors_and_tiles_sum_what_a_plain_loop_sums(tmp_path):
    program = tmp_path / "int8_ways"
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-DHFK_X86", str(SOURCE), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": 0 wrong") == 20
