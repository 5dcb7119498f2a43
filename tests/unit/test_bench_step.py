"""``tools/bench_step.py``: every kind of step trains what it says, is timed, and its memory is its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="the rival that is timed")

SIZES = (1, 64, 2, 4)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    monkeypatch.delitem(sys.modules, "bench_step", raising=False)
    import bench_step

    return bench_step


def test_every_kind_makes_a_step_and_is_timed(bench):
    found = bench.milliseconds(1, *SIZES)
    assert set(found) == set(bench.KINDS) and min(found.values()) > 0


@pytest.mark.parametrize("kind", ["lora", "peft lora"])
def test_a_lora_step_trains_the_update_of_rank_8_and_the_head_alone(bench, kind, monkeypatch):
    import torch

    made = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda given, **k: adamw(made.append(list(given)) or made[-1], **k))
    bench.stepper(kind, *SIZES)()
    assert sum(p.numel() for p in made[0]) == 2 * 2 * 8 * 64 + 2 * 64 + 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells what a process needed at most")
def test_memory_counts_what_a_step_holds(bench):
    few, many = (bench.mebibytes("lora", 1, 64, rows, 64) for rows in (1, 512))
    assert 0 <= few < many
    assert many > 512 * 64 * 4 * 64 * 4 / 2**20, "the activations of one feed-forward part alone"
