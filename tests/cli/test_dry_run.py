"""``hfadapt train --dry-run``: its time is that of the run's own updates; a base without room is measured by layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hfadapt.recipes import pace, plan
from hfadapt.recipes.config import load_recipe
from hfadapt.recipes.run import Run
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer


@pytest.fixture(scope="module")
def deep(recipe, tmp_path_factory) -> Path:
    """A base of five layers."""
    folder = tmp_path_factory.mktemp("deep")
    tiny_model("bert", num_hidden_layers=5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def planned(hfadapt, recipe, deep, folder, *changes):
    return json.loads(
        hfadapt("train", recipe, f"model={deep}", *changes, "--dry-run", "--json", "--output", folder).stdout
    )


@pytest.mark.parametrize("method", ["low_rank", "bottleneck", "lora"])
def test_a_base_that_memory_has_no_room_for_is_measured_by_its_layers(
    hfadapt, recipe, deep, tmp_path, monkeypatch, method
) -> None:
    change = f"method={{method: {method}}}"
    whole = planned(hfadapt, recipe, deep, tmp_path / "run", change)
    assert whole["fits_in_memory"]
    monkeypatch.setattr(plan, "available_bytes", lambda: 1000)
    monkeypatch.setattr(Run, "build_model", lambda *given, **how: pytest.fail("the whole base was loaded"))
    found = planned(hfadapt, recipe, deep, tmp_path / "run", change)
    same = ("steps", "base_parameters", "added_parameters", "trained_parameters", "memory_bytes")
    assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    assert {key: found["disk_bytes"][key] for key in ("adapter", "tokens")} == {
        key: whole["disk_bytes"][key] for key in ("adapter", "tokens")
    }
    assert not found["fits_in_memory"] and "the memory has room for" in " ".join(found["notes"])
    assert "measured on the first layer and the first two of 5" in " ".join(found["notes"])


def test_what_further_layers_add_is_what_the_second_adds() -> None:
    assert pace.grown([10, 13], 1) == 10 and pace.grown([10, 13], 2) == 13 and pace.grown([10, 13], 12) == 43


def test_the_time_is_that_of_rows_of_average_length(recipe, deep, tmp_path, monkeypatch) -> None:
    run = Run(load_recipe(recipe, [f"model={deep}", f"output={tmp_path / 'run'}", "mixing.bucket_steps=1"]))
    tokens = pace._tokens_of_updates(run.mixture.schedule)
    rows = [run.mixture.collator([run.mixture.train[4 * step + row] for row in range(4)]) for step in range(3)]
    held = [sum(one[name].numel() for name in ("input_ids", "pair_input_ids") if name in one) for one in rows]
    # a batch without a pair still counts none of its tokens
    assert np.all(np.abs(tokens - held) <= 4)
    monkeypatch.setattr(pace, "_tokens_of_updates", lambda schedule: np.array([1.0, 2.0, 3.0, 10.0]))
    monkeypatch.setattr(pace, "UPDATES", 2)
    clock = iter(range(100))
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    found = pace.measure_pace(run, run.build_model())
    assert found == pace.Pace(4.0 / 2.5, 2)


def test_a_dry_run_ends_when_enough_seconds_have_passed(hfadapt, recipe, deep, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pace, "ENOUGH_SECONDS", 0.0)
    assert planned(hfadapt, recipe, deep, tmp_path / "run")["seconds"]["updates_timed"] == 1


def test_regularizers_and_dropped_layers_are_in_the_time(hfadapt, recipe, deep, tmp_path, monkeypatch) -> None:
    given = {}
    made = pace.make_trainer
    monkeypatch.setattr(pace, "make_trainer", lambda *a, **k: given.update(k) or made(*a, **k))
    changes = ("regularizer={name: smart}", "adapter_drop=1")
    assert planned(hfadapt, recipe, deep, tmp_path / "run", *changes)["seconds"]["update"] > 0
    assert given["regularizer"] and "RobustAdapterDrop" in [type(one).__name__ for one in given["callbacks"]]
    assert not (tmp_path / "run").exists()
