"""``tools/bench_map.py`` times the map and attach as a model grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_size_of_both_families_is_timed(tmp_path):
    command = [sys.executable, ROOT / "tools" / "bench_map.py", "--layers", "1", "2", "--turns", "1", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    rows = json.loads((tmp_path / "attach_sizes.json").read_text("utf-8"))["rows"]
    assert [(row["family"], row["linears"]) for row in rows] == [
        ("llama", 7),
        ("llama", 14),
        ("stablelm", 7),
        ("stablelm", 14),
    ]
    assert all(row["attach"] > 0 and row["map"] > 0 for row in rows)
