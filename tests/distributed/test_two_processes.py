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
STOCK = Path(__file__).parent / "train_stock.py"
ROOT = Path(__file__).parents[2]
PLAIN = {"method": "low_rank", "batch": "one_task", "drop": False, "checkpointing": False}


def run(folder: Path, options: dict, script: Path = SCRIPT):
    """Train under torchrun and return what each rank wrote."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*command, str(folder), json.dumps(options)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def same_parameters(first, second):
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        torch.testing.assert_close(value, second["state"][name], rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, PLAIN)


def test_ranks_end_with_identical_parameters_and_metrics(whole):
    first, second = whole[1]
    same_parameters(first, second)
    assert first["scores"] == second["scores"] and len(first["scores"]) == 2


def test_every_step_holds_one_task_on_all_ranks_and_accumulated_batches(whole):
    first, second = (record["tasks"] for record in whole[1])
    for step in range(6):
        rows = [task for record in (first, second) for batch in record[2 * step : 2 * step + 2] for task in batch]
        assert len(rows) == 8 and len(set(rows)) == 1


def test_idle_tasks_stand_still(whole):
    names = ("topic", "score", "same")
    record = whole[1][0]
    for step, moved in enumerate(record["moved"]):
        task = names[record["tasks"][2 * step][0]]
        assert moved and all(f".{task}." in name for name in moved)


def test_a_resumed_run_ends_with_the_same_numbers(whole, tmp_path):
    folder, records = whole
    again = run(tmp_path, {**PLAIN, "resume": str(folder / "run" / "checkpoint-4")})
    same_parameters(again[0], records[0])
    same_parameters(again[0], again[1])


def test_mixed_batches_dropped_layers_and_checkpointing_agree_too(tmp_path):
    first, second = run(tmp_path, {**PLAIN, "batch": "mixed", "drop": True, "checkpointing": True})
    same_parameters(first, second)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    runs = {"plain": PLAIN, "dropped": {**PLAIN, "drop": True, "checkpointing": True}}
    return run(tmp_path_factory.mktemp("stock"), runs, STOCK)


def test_a_stock_model_with_adapters_of_other_tasks_on_each_rank_trains_with_the_plain_trainer(stock):
    first, second = (record["plain"] for record in stock)
    same_parameters(first, second)
    # the tasks of both ranks in the first step, one alone in the second; nobody's row is of the third
    assert first["moved"] == second["moved"] == [["a", "b"], ["a"]]


def test_a_stock_model_trains_with_dropped_layers_and_checkpointing(stock):
    first, second = (record["dropped"] for record in stock)
    same_parameters(first, second)
    assert all("c" not in moved for moved in first["moved"])
