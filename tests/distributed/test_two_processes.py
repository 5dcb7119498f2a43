"""Two gloo processes under torchrun agree on every draw and end with identical parameters."""

from __future__ import annotations

import torch

from tests.distributed.conftest import ranks
from tests.distributed.train_tasks import resume


def same_parameters(first, second):
    assert first["state"].keys() == second["state"].keys()
    for name, value in first["state"].items():
        torch.testing.assert_close(value, second["state"][name], rtol=0, atol=0, msg=name)


def test_ranks_end_with_identical_parameters_and_metrics(through):
    first, second = (one["whole"] for one in ranks(through, "tasks"))
    same_parameters(first, second)
    assert first["scores"] == second["scores"] and len(first["scores"]) == 2


def test_every_step_holds_one_task_on_all_ranks_and_accumulated_batches(through):
    first, second = (one["whole"]["tasks"] for one in ranks(through, "tasks"))
    for step in range(6):
        rows = [task for record in (first, second) for batch in record[2 * step : 2 * step + 2] for task in batch]
        assert len(rows) == 8 and len(set(rows)) == 1


def test_idle_tasks_stand_still(through):
    names = ("topic", "score", "same")
    record = ranks(through, "tasks")[0]["whole"]
    for step, moved in enumerate(record["moved"]):
        task = names[record["tasks"][2 * step][0]]
        assert moved and all(f".{task}." in name for name in moved)


def test_a_resumed_run_ends_with_the_same_numbers(afresh):
    """In processes of its own, which know nothing of the run that was cut off but its checkpoint."""
    folder, _, said = afresh
    assert (folder / "again-1.pt").exists(), said[-6000:]
    first, second = ranks(folder, "again")
    same_parameters(first, ranks(folder, "tasks")[0]["whole"])
    same_parameters(first, second)


def test_a_run_resumed_on_one_process_goes_on_with_the_same_tasks(through, tmp_path):
    first, second = (one["whole"]["tasks"] for one in ranks(through, "tasks"))
    alone = resume(through, tmp_path, processes=1)["tasks"]
    assert len(alone) == 4 and all(len(rows) == 4 for rows in alone)
    assert alone == [a + b for a, b in zip(first[8:], second[8:], strict=True)]


def test_mixed_batches_dropped_layers_and_checkpointing_agree_too(through):
    same_parameters(*(one["mixed"] for one in ranks(through, "tasks")))


def test_a_stock_model_with_adapters_of_other_tasks_on_each_rank_trains_with_the_plain_trainer(through):
    first, second = (one["whole"] for one in ranks(through, "stock"))
    same_parameters(first, second)
    # the tasks of both ranks in the first step, one alone in the second; nobody's row is of the third
    assert first["moved"] == second["moved"] == [["a", "b"], ["a"]]


def test_a_stock_model_trains_with_dropped_layers_and_checkpointing(through):
    first, second = (one["dropped"] for one in ranks(through, "stock"))
    same_parameters(first, second)
    assert all("c" not in moved for moved in first["moved"])
