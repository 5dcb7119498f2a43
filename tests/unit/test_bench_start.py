"""``tools/bench_start.py`` times commands, and the start of training with both libraries, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="the rival that is timed")

ROOT = Path(__file__).resolve().parents[2]


def test_both_are_adapted_and_make_a_step(tmp_path: Path) -> None:
    sizes = ["--layers", "1", "--hidden", "24", "--turns", "1", "--before", "0"]
    command = [sys.executable, ROOT / "tools" / "bench_start.py", *sizes]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "plugins"))
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "start.json").read_text("utf-8"))
    assert min(found["seconds"].values()) > 0
    assert set(found["milliseconds"]) == {"hfadapt", "peft"}
    for taken in found["milliseconds"].values():
        assert min(taken.values()) > 0
        assert max(taken["adapt"], taken["step"]) <= taken["both"]
