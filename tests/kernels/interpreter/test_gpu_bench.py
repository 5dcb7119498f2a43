"""``make gpu`` as far as a machine without a card goes: every part, interpreted, at the smallest sizes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    # Part c: what users would run instead, each measured and none that only failed.
    rivals: dict[str, set[str]] = {}
    for row in found["c_rates"]["rows"]:
        times = row.get("rivals_ms", {})
        assert all(isinstance(time, float) for time in times.values()), times
        rivals.setdefault(row["op"], set()).update(times)
    assert all("eager" in rivals[op] for op in ops)
    assert rivals["grouped_lora"] >= {"peft's loop", "sorted slices", "torch.compile of slices"}
    assert ("F.grouped_mm" in rivals["grouped_lora"]) == hasattr(torch.nn.functional, "grouped_mm")
    assert rivals["prefix_attention"] >= {"attention, prefix concatenated", "attention without prefix"}
    variants = [row["variant"] for row in found["d_encoder"]["rows"]]
    assert variants == ["2 tasks mixed", "one task", "peft's loop", "bare base"]
    assert all(row["forward_ms"] > 0 and row["step_ms"] > 0 for row in found["d_encoder"]["rows"])
    # Part e: every kernel that an op launches by a configuration, and the fastest as a configuration to commit.
    tried = found["e_neighbours"]["rows"]
    assert {row["op"] for row in tried} == ops - {"lora_linear"} | {"weight gradients"}
    assert len({row["kernel"] for row in tried if row["op"] == "prefix_attention"}) == 4
    assert len({row["kernel"] for row in tried if row["op"] == "parallel_adapter_norm"}) == 2
    for row in tried:
        assert row["ms"].keys() == {"committed", "twice the warps"} and row["launch"]["num_warps"] > 0
    # The most valuable first.
    written = sorted(tmp_path.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem[0] for path in written] == list("abcde")
    assert all(row["right"] for part in "ab" for name in found if name[0] == part for row in found[name]["rows"])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_each_part_is_written_as_it_ends_and_a_broken_one_costs_itself_alone(tmp_path, monkeypatch):
    from hfadapt_kernels.bench.gpu import __main__ as script

    def broken(sizes, device):
        yield {"op": "one", "right": True}
        raise ZeroDivisionError("theirs")

    def last(sizes, device):
        before = json.loads((tmp_path / "a_broken.json").read_text("utf-8"))
        assert before["rows"] == [{"op": "one", "right": True}]
        assert before["state"] == "ZeroDivisionError: theirs" and before["about"]["torch"]
        yield {"op": "two"}

    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))
    monkeypatch.setattr(script, "_parts", lambda: {"a_broken": broken, "b_last": last})
    assert script.main(["--out", str(tmp_path), "--device", "cpu"]) == 1
    assert json.loads((tmp_path / "b_last.json").read_text("utf-8"))["state"] == "whole"
    # After its time no new row is begun, and what is there is written.
    monkeypatch.setattr(script, "_parts", lambda: {"b_last": last, "c_never": broken})
    assert script.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "0"]) == 0
    assert json.loads((tmp_path / "b_last.json").read_text("utf-8"))["state"] == "cut: out of time"
    assert not (tmp_path / "c_never.json").exists()


def test_the_sizes_on_a_card_are_those_that_the_goals_name():
    from hfadapt_kernels.bench.gpu.neighbours import _CHANGES
    from hfadapt_kernels.bench.gpu.sizes import CARD

    assert CARD.repeats == 20
    assert all(size.rows * size.tokens >= 16384 for size in CARD.large)
    assert [size.tasks for size in CARD.large] == [8, 64, 512]
    assert CARD.captured.rows * CARD.captured.tokens == 2048
    assert CARD.encoder[0] == 6 and CARD.encoder[1].tasks == 32
    assert CARD.dtypes == (torch.float32, torch.bfloat16)
    # Odd ones: no count of tokens, width or rank that a block divides, and ranks that differ between tasks.
    assert any(size.tokens % 2 and size.width % 16 and size.rank % 8 for size in CARD.odd)
    assert len(_CHANGES.keys() - {"committed"}) == 3


def test_each_goal_says_where_and_when_it_was_measured_or_not_yet():
    """A card and a date stand beside the files of that run; the goals are those of the ops' pages, all ten."""
    folder = ROOT / "benchmarks" / "gpu"
    table = (folder / "README.md").read_text("utf-8").split("| op | goal | measured |")[1].split("\n\n")[0]
    goals = [row.strip("|").split("|") for row in table.strip().splitlines()[1:]]
    assert len(goals) == 10
    for *_, goal, measured in goals:
        card = re.fullmatch(r".*\((?P<card>\w[^,]*), \d{4}-\d\d-\d\d\)", measured.strip())
        assert goal.strip() and (measured.strip() == "not yet" or card), (goal, measured)
        if card:
            held = [json.loads(path.read_text("utf-8"))["about"]["device"] for path in folder.rglob("*.json")]
            assert any(card["card"] in device for device in held), (goal, measured)
