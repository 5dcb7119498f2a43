"""Two gloo processes under torchrun agree on every draw and end with identical parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "train_two.py"
ROOT = Path(__file__).parents[2]
PLAIN = {"training": "tasks", "method": "low_rank", "batch": "one_task", "drop": False, "checkpointing": False}
STOCK = {"training": "stock", "drop": False, "checkpointing": False}
DROPPED = {"drop": True, "checkpointing": True}
RUNS = {
    "whole": PLAIN,
    "mixed": {**PLAIN, **DROPPED, "batch": "mixed"},
    "stock": STOCK,
    "stock dropped": {**STOCK, **DROPPED},
}


def train(folder: Path, runs: dict[str, dict]) -> dict[str, list[dict]]:
    """Do the trainings under torchrun and return, by name, what each rank wrote."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(folder), json.dumps(runs)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-6000:]
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {name: [records[name] for records in ranks] for name in runs}


def same_parameters(first, second):
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        torch.testing.assert_close(value, second["state"][name], rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(folder):
    return train(folder, RUNS)


def test_ranks_end_with_identical_parameters_and_metrics(done):
    first, second = done["whole"]
    same_parameters(first, second)
    assert first["scores"] == second["scores"] and len(first["scores"]) == 2


def test_every_step_holds_one_task_on_all_ranks_and_accumulated_batches(done):
    first, second = (record["tasks"] for record in done["whole"])
    for step in range(6):
        rows = [task for record in (first, second) for batch in record[2 * step : 2 * step + 2] for task in batch]
        assert len(rows) == 8 and len(set(rows)) == 1


def test_idle_tasks_stand_still(done):
    names = ("topic", "score", "same")
    record = done["whole"][0]
    for step, moved in enumerate(record["moved"]):
        task = names[record["tasks"][2 * step][0]]
        assert moved and all(f".{task}." in name for name in moved)


def test_a_resumed_run_ends_with_the_same_numbers(folder, done, tmp_path):
    """In processes of its own, which know nothing of the run that was cut off but its checkpoint."""
    first, second = train(tmp_path, {"again": {**PLAIN, "resume": str(folder / "whole" / "checkpoint-4")}})["again"]
    same_parameters(first, done["whole"][0])
    same_parameters(first, second)


def test_mixed_batches_dropped_layers_and_checkpointing_agree_too(done):
    same_parameters(*done["mixed"])


def test_a_stock_model_with_adapters_of_other_tasks_on_each_rank_trains_with_the_plain_trainer(done):
    first, second = done["stock"]
    same_parameters(first, second)
    # the tasks of both ranks in the first step, one alone in the second; nobody's row is of the third
    assert first["moved"] == second["moved"] == [["a", "b"], ["a"]]


def test_a_stock_model_trains_with_dropped_layers_and_checkpointing(done):
    first, second = done["stock dropped"]
    same_parameters(first, second)
    assert all("c" not in moved for moved in first["moved"])
