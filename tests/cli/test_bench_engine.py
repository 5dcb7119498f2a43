"""``hfadapt bench engine``: every case beside its rivals, taking turns; what is missed or not measured is said."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from hfadapt.cli import bench_engine
from hfadapt.cli.engine_cases import CASES, Case, Rival, Rivals, figures_of, rivals
from hfadapt.errors import ConfigError, HFAdaptError

SMALL = ("--layers", 2, "--hidden", 64, "--rows", 4, "--tokens", 16, "--many", 10, "--texts", 8, "--repeats", 1)
SMALL = (*SMALL, "--threads", 1)
GOALS = {
    "mixed-int8": [3.2, 2.7, 1.0],
    "mixed": [1.15, 1.0, 1.75],
    "one-text": [1.05, 1.2],
    "one-text-int8": [3.0, 3.0],
    "fusion": [2.6, 5.0],
    "families": [None, None],
    "real-text": [4.0, 4.0],
    "many": [None, None],
}


@pytest.fixture(scope="module")
def figures(hfadapt, tmp_path_factory):
    """Two runs into one file, and what the first printed."""
    folder = tmp_path_factory.mktemp("engine")
    first = [option for name in CASES[:4] for option in ("--cases", name)]
    rest = [option for name in CASES[4:] for option in ("--cases", name)]
    printed = hfadapt("bench", "engine", *SMALL, *first, "--out", folder).output
    told = json.loads(hfadapt("bench", "engine", *SMALL, *rest, "--out", folder, "--json").stdout)
    return json.loads((folder / "engine.json").read_text("utf-8"))["engine"], printed, told["engine"]


def test_every_case_stands_beside_its_rivals_with_machine_shapes_and_goals(figures) -> None:
    found, printed, told = figures
    assert [*found] == list(CASES) and [*told] == list(CASES[4:])
    for name, case in found.items():
        assert {"device", "simd", "int8 products", "threads", "torch", "peft"} <= set(case["machine"])
        assert case["machine"]["threads"] == 1 and case["sizes"]["layers"] == 2
        assert [row["goal"] for row in case["rows"]] == GOALS[name]
        for row in case["rows"]:
            assert row["dtype"] in ("float32", "int8_dynamic") and row["shape"] and row["ms"] > 0
            assert (row["rival ms"] is None) == (row["met"] is None) == (row["not measured"] is not None)
    assert {row["rival"] for row in found["mixed"]["rows"]} == {"peft, adapter_names", "bare base, torch float32"}
    assert "peft, adapter_names" in printed and "threads: 1" in printed
    assert all(row["at most"] for name in ("families", "many") for row in found[name]["rows"])
    assert found["many"]["rows"][0]["MB a task"] > 0 and found["real-text"]["rows"][0]["texts a second"] > 0


def test_rivals_without_an_environment_are_named_and_not_silent(figures) -> None:
    found, printed, _ = figures
    missing = [row for case in found.values() for row in case["rows"] if row["not measured"]]
    assert {row["rival"] for row in missing} == {"bare base, OpenVINO int8", "adapters, Parallel", "adapters, Fuse"}
    assert {row["not measured"] for row in missing} == {"not measured: no --adapters-env"}
    assert "not measured" in printed


def test_a_missed_goal_and_what_is_not_ahead_are_said() -> None:
    def seconds(taken: float):
        return lambda: taken

    case = Case("x", seconds(2.0), [Rival("a", seconds(3.0), 1.6), Rival("b", seconds(1.0), 1.0),
                                    Rival("c", seconds(9.0), 3.0), Rival("d", seconds(1.9), most=1.1),
                                    Rival("e", "not measured: no such thing", 2.0)], "1 x 1")  # fmt: skip
    rows = figures_of(case, 1)
    assert [row["met"] for row in rows] == [False, False, True, True, None]
    assert [row["times as fast"] for row in rows] == [1.5, 0.5, 4.5, 0.95, None]
    verdicts = [bench_engine._cells(row)[-1] for row in rows]
    assert verdicts == ["missed", "missed, and not ahead", "", "", "not measured: no such thing"]


def test_calls_take_turns() -> None:
    turns: list[str] = []
    others = [Rival(name, lambda name=name: turns.append(name)) for name in "ab"]
    case = Case("x", lambda: turns.append("x"), others, "")
    figures_of(case, 2)
    assert turns == ["x", "a", "b"] * 3


def _environment(folder: Path, program: str = "") -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the environment is a shell script")
def test_an_environment_without_the_library_says_which_one_is_missing(tmp_path) -> None:
    with Rivals(_environment(tmp_path), 1).closing() as processes:
        told = processes.call("fusion", layers=1, hidden=16, rows=1, tokens=4, tasks=2)
    assert told == "not measured: ModuleNotFoundError: No module named 'torch'"
    assert Rivals(tmp_path / "none", 1).call("fusion").startswith("not measured: no environment")


@pytest.mark.skipif(os.name == "nt", reason="the environment is a shell script")
def test_a_rivals_process_takes_a_turn_a_line_and_tells_its_own_seconds(tmp_path, monkeypatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "told = json.loads(sys.stdin.readline())\n"
        "print(json.dumps({'versions': {'it': '1.0'}}), flush=True)\n"
        "for turn, line in enumerate(sys.stdin):\n"
        "    if turn == told['turns']: sys.exit(3)\n"
        "    print(json.dumps({'seconds': 7.0 + turn}), flush=True)\n"
    )
    monkeypatch.setattr(rivals, "_PROGRAM", program)
    with Rivals(_environment(tmp_path / "env"), 1).closing() as processes:
        call = processes.call("it", turns=2)
        assert (call(), call()) == (7.0, 8.0) and processes.versions == {"it": "1.0"}
        with pytest.raises(HFAdaptError, match="a rival stopped"):
            call()
        started = time.perf_counter()
    assert time.perf_counter() - started < 30 and not processes._running


def test_bad_options_are_refused_before_anything_is_timed(hfadapt, tmp_path) -> None:
    with pytest.raises(ConfigError, match="repeats"):
        hfadapt("bench", "engine", *SMALL, "--repeats", 0)
    assert "mixed-int8" in hfadapt("bench", "engine", "--cases", "mixd", status=2).output
    (tmp_path / "engine.json").write_text("{}")
    with pytest.raises(HFAdaptError, match="did not write this file"):
        hfadapt("bench", "engine", *SMALL, "--out", tmp_path)
