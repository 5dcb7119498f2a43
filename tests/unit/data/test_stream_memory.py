"""``tools/bench_streams.py``: rows of parquet shards are read as they come, and what was read is not held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROWS = 16_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")
def test_memory_does_not_grow_with_the_rows_that_were_read(tmp_path):
    command = [sys.executable, ROOT / "tools" / "bench_streams.py", "--rows", str(ROWS), "--processes", "4"]
    subprocess.run([*command, "--out", tmp_path], check=True, capture_output=True, cwd=ROOT)
    found = json.loads((tmp_path / "streams.json").read_text("utf-8"))
    notes = found["on the way"]
    assert 0.99 * 3 * ROWS < notes[-1]["rows"] <= 3 * ROWS and len(notes) == 20
    assert {"simd", "torch", "transformers"} <= set(found["machine"]) and found["rows a second"] > 0
    # their tokens alone, as numbers of 4 bytes and with their masks, are more
    assert found["growth behind the first tenth, MiB"] < ROWS * 26 * 8 / 2**20
    assert found["growth behind the first tenth, MiB"] < notes[0]["resident MiB"] / 20
