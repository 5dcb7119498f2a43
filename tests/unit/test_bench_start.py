"""``tools/bench_start.py`` times adapting and the first step of both, each on its own copy of the model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="the rival that is timed")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_start.py"


def test_both_are_adapted_and_make_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    tool = runpy.run_path(str(TOOL))
    try:
        found = tool["seconds"](layers=1, hidden=24, repeats=1)
    finally:
        sys.modules.pop("bench_path", None)
    assert set(found) == {"hfadapt", "peft", "times peft"}
    for name in ("hfadapt", "peft"):
        taken = found[name]["milliseconds"]
        assert min(taken.values()) > 0
        assert max(taken["adapt"], taken["step"]) <= taken["both"] + 0.1  # each is rounded
