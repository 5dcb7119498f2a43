"""The measuring harness: row schema, interleaving, unique cases."""

from __future__ import annotations

import json

import torch

from hfadapt_kernels.bench import Case, Workload, all_cases, runner
from hfadapt_kernels.bench.harness import time_together


def test_every_callable_is_timed_in_every_round():
    calls = {"a": 0, "b": 0}

    def count(name):
        def call():
            calls[name] += 1

        return call

    times = time_together({name: count(name) for name in calls}, seconds=0.0, min_samples=6)
    assert calls == {"a": 8, "b": 8}  # two warm-up calls and six rounds
    assert all(timing.low <= timing.median <= timing.high for timing in times.values())


def test_case_names_are_unique_and_name_their_op():
    cases = all_cases()
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    ops = {"parallel_adapter_norm", "frozen_linear", "pal_attention", "prefix_attention", "adapter_fusion"}
    assert ops <= {case.op for case in cases}


def test_rows_hold_what_the_report_reads(monkeypatch):
    x = torch.randn(64, 64)
    work = Workload(lambda: x @ x, {"eager": lambda: x @ x @ x}, flops=2 * 64**3, bytes=3 * 4 * 64**2, shape={"n": 64})
    monkeypatch.setattr(runner, "all_cases", lambda: [Case("tiny", "matmul", lambda: work, {"eager": 1.1})])
    monkeypatch.setattr(runner, "measure_floor", lambda: {"float32": 1e9, "bfloat16": 1e9, "bandwidth": 1e9})
    before = torch.get_num_threads()
    seen = []
    rows = runner.run_here(seconds=0.0, threads=1, on_row=seen.append)
    torch.set_num_threads(before)
    assert rows == seen == json.loads(json.dumps(rows))
    (row,) = rows
    needed = {"case", "rival", "median_ms", "rival_median_ms", "ratio", "goal", "floor_fraction", "dtype", "shape"}
    assert needed <= set(row)
    assert row["goal"] == 1.1
    assert runner.run_here(["another"], seconds=0.0, threads=before) == []
