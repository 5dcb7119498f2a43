"""``tools/bench_step.py``: every kind of step trains what it says, is timed, and its memory is its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hfadapt.cli.engine_cases import Rivals

pytest.importorskip("peft", reason="the rival that is timed")

SIZES = (1, 64, 2, 4)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    monkeypatch.delitem(sys.modules, "bench_step", raising=False)
    import bench_step

    return bench_step


def test_every_kind_makes_a_step_and_is_timed(bench):
    found = bench.milliseconds(bench.KINDS, 1, Rivals(None, 1), *SIZES)
    assert set(found) == set(bench.KINDS) and min(found.values()) > 0
    assert set(bench.PARTS["steps"]) | set(bench.PARTS["fusion"]) == {*bench.KINDS, *bench.ADAPTERS}


class Told:
    """Rivals that tell what they are given."""

    def __init__(self, *seconds):
        self.seconds, self.asked = [*seconds], []

    def ask(self, what, **told):
        self.asked.append((what, told))
        return lambda: {"seconds": self.seconds.pop(0), "MiB": 100.0 * len(self.seconds)}

    def close(self):
        pass


def test_adapters_takes_its_turns_in_its_own_process_with_the_same_shapes(bench):
    rivals = Told(9.0, 0.5)  # the first warms up
    found = bench.milliseconds(bench.PARTS["fusion"], 1, rivals, *SIZES)
    assert rivals.asked == [
        ("step", {"layers": 1, "hidden": 64, "rows": 2, "tokens": 4, "method": "fusion", "tasks": 8})
    ]
    assert found["adapters fusion of 8"] == 500 and found["fusion of 8"] > 0
    times = bench.beside_adapters(found, False)
    assert times == {"fusion of 8": pytest.approx(500 / found["fusion of 8"], abs=1e-3)}
    assert bench.beside_adapters({"lora": 8.0, "adapters lora": 10.0, "pal": 3.0}, True) == {"lora": 0.8}


def test_without_its_environment_adapters_is_left_out_and_said_so(bench):
    found = bench.milliseconds(bench.PARTS["fusion"], 1, Rivals(None, 1), *SIZES)
    assert found["adapters fusion of 8"] == "not measured: no --adapters-env" and found["fusion of 8"] > 0
    assert not bench.beside_adapters(found, False)


def test_a_part_that_is_measured_alone_keeps_the_others(bench, tmp_path, monkeypatch, capsys):
    (tmp_path / "step.json").write_text(json.dumps({"memory": "as before", "of another build": 1}))
    monkeypatch.setattr(bench, "milliseconds", lambda kinds, *rest: dict.fromkeys(kinds, 2.0))
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--only", "fusion", "--out", str(tmp_path)])
    bench.main()
    kept = json.loads((tmp_path / "step.json").read_text())
    assert kept["memory"] == "as before" and [*kept] == ["memory", "fusion"]
    assert {"simd", "dtype", "torch", "peft", "threads"} <= set(kept["fusion"]["machine"])
    assert json.loads(capsys.readouterr().out) == {"fusion": kept["fusion"]}


@pytest.mark.parametrize("kind", ["lora", "peft lora"])
def test_a_lora_step_trains_the_update_of_rank_8_and_the_head_alone(bench, kind, monkeypatch):
    import torch

    made = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda given, **k: adamw(made.append(list(given)) or made[-1], **k))
    bench.stepper(kind, *SIZES)()
    assert sum(p.numel() for p in made[0]) == 2 * 2 * 8 * 64 + 2 * 64 + 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells what a process needed at most")
def test_memory_counts_what_a_step_holds(bench, monkeypatch):
    few, many = (bench.mebibytes("lora", 1, 64, rows, 64) for rows in (1, 512))
    assert 0 <= few < many
    assert many > 512 * 64 * 4 * 64 * 4 / 2**20, "the activations of one feed-forward part alone"
    monkeypatch.setattr(bench, "KINDS", ("lora",))
    found = bench.memory(Told(1.0, 1.0, 1.0, 1.0, 1.0, 1.0), {"layers": 1, "hidden": 64, "rows": 2, "tokens": 4})
    # behind the step that warmed it up, two more
    assert found["lora"] >= 0 and [found[kind] for kind in bench.ADAPTERS] == [400, 200, 0]
