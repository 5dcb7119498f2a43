"""``hfadapt bench ops`` measures a case in processes of its own, prints rows and writes plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfadapt.errors import HFAdaptError

CASE = "frozen_linear float32 768x768"


def test_bench_writes_rows_and_a_plot(hfadapt, tmp_path: Path) -> None:
    options = ("--seconds", 0.05, "--threads", 1, "--allocator", "default", "--out", tmp_path, "--json")
    result = json.loads(hfadapt("bench", "ops", CASE, *options).stdout)
    assert result["device"]["processor"]
    assert {row["case"] for row in result["rows"]} == {CASE}
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["rival_median_ms"] / row["median_ms"], abs=0.01)
        assert {"goal", "floor_fraction", "dtype", "shape", "threads", "allocator"} <= set(row)
    assert json.loads((tmp_path / "ops.json").read_text("utf-8")) == result
    assert (tmp_path / "frozen_linear.png").stat().st_size > 0


def test_bench_refuses_what_names_no_case(hfadapt) -> None:
    with pytest.raises(HFAdaptError, match="no case matches; got: no_such_op; allowed: .*grouped_lora"):
        hfadapt("bench", "ops", "no_such_op")
