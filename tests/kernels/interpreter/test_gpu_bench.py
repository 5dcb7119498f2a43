"""``make gpu`` as far as a machine without a card goes: every part, interpreted, at the smallest sizes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_every_part_runs_without_a_card_and_writes_its_file(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HFADAPT_BUILD_CPP": "0", "PYTHONPATH": str(ROOT / "kernels")}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "hfadapt_kernels.bench.gpu",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    command += ["--seconds", "800"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in tmp_path.glob("*.json")}
    assert list(sorted(found)) == ["a_correctness", "b_equal_bits", "c_rates", "d_encoder", "e_neighbours"]
    for part in found.values():
        assert part["state"] == "whole" and part["rows"]
    ops = {row["op"] for row in found["a_correctness"]["rows"]}
    assert ops == {row["op"] for row in found["b_equal_bits"]["rows"]}
    assert {row["op"] for row in found["c_rates"]["rows"]} == ops | {"ceilings"}
    assert all(row["right"] for part in "ab" for name in found if name[0] == part for row in found[name]["rows"])
