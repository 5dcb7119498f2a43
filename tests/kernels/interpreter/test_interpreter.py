"""Every Triton kernel against the reference in Triton's interpreter, forward and every gradient.

TRITON_INTERPRET is read when a kernel is decorated, so these runs cannot share a process with the other tests; most of
their time would be imports, so several ops share one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
GROUPS = [
    ("prefix_attention", "frozen_linear", "adapter_fusion"),
    ("device_path", "small_card"),
    ("pal_attention", "grouped_lora", "parallel_adapter_norm"),
]


def test_every_case_file_is_run():
    assert sorted(f"{op}_case.py" for group in GROUPS for op in group) == sorted(p.name for p in HERE.glob("*_case.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("ops", GROUPS, ids="-".join)
def test_triton_kernels_equal_the_reference(ops):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = HERE.parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels"), str(root / "plugins")])
    command = [sys.executable, "-W", "ignore::RuntimeWarning", str(HERE / "run_cases.py"), *ops]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
