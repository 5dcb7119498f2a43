"""Every Triton kernel against the reference in Triton's interpreter, each op in a process of its own.

TRITON_INTERPRET is read when a kernel is decorated, so these runs cannot share a process with the other tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("*_case.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem.removesuffix("_case"))
def test_triton_kernels_equal_the_reference(script):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels"), str(root / "plugins")])
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
