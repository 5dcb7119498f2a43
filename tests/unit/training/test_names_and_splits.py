"""Names that a run could not report, and data that it could not score, are found before anything is trained."""

from __future__ import annotations

import pytest
from torch import nn

import hfadapt
from hfadapt import Classification, OwnHead, Regression, Task
from hfadapt.errors import AttachError, CheckpointError, DataError, RoutingError, TaskError
from hfadapt.recipes.build import check_scorable, hold_out
from hfadapt.recipes.checks import require_proof
from hfadapt.testing.tiny import tiny_model
from hfadapt.training import METRICS, MultiTaskMetrics, register_metric

ROWS = [{"text": f"w{i}", "label": i % 2} for i in range(20)]


@pytest.mark.parametrize(
    "name", ["pop", "eval", "train", "keys", "items", "values", "training", "forward", "type", "a.b", "", "x" * 200]
)
def test_a_name_that_no_module_can_have_is_refused_at_once(name):
    with pytest.raises(TaskError, match="bad task name.*'my_"):
        Task(name)
    with pytest.raises(AttachError, match="bad adapter or task name"):
        hfadapt.attach(tiny_model("bert"), "lora", name)


def test_every_name_that_is_allowed_fits_a_module_dict():
    words = {*dir(nn.Module()), *dir(nn.ModuleDict()), *dir(dict), "score", "loss", "macro", "test", "0"}
    allowed = []
    for word in sorted(words):
        try:
            allowed.append(Task(word).name)
        except TaskError:
            continue
    assert {"score", "test", "0", "macro"} <= set(allowed)
    nn.ModuleDict({name: nn.Identity() for name in allowed})


@pytest.mark.parametrize("name", ["eval_a", "test", "test_a", "train_a"])
def test_names_by_which_trainer_tells_its_metrics_apart_are_refused_at_the_start(make_trainer, name):
    with pytest.raises(TaskError, match=f"task '{name}': Trainer tells"):
        make_trainer(tasks=[Task(name, data={"train": ROWS, "validation": ROWS})])
    with pytest.raises(TaskError, match=f"task '{name}': Trainer tells"):
        check_scorable([Task(name)])


@pytest.mark.parametrize("name", ["score", "score_a", "evaluation", "macro", "loss"])
def test_other_names_are_reported_under_their_own(make_trainer, name):
    trainer = make_trainer(tasks=[Task(name, data={"train": ROWS, "validation": ROWS}), Task("b", data=ROWS)])
    assert f"eval_{name}_accuracy" in trainer.evaluate()


def test_two_results_of_one_name_are_refused():
    before = dict(METRICS)
    register_metric("b_f1", lambda scored: 1.0, greater_is_better=True)
    register_metric("per_second", lambda scored: 1.0, greater_is_better=True)
    try:
        with pytest.raises(TaskError, match="two results would be called 'a_b_f1'"):
            MultiTaskMetrics([Task("a", metrics=("b_f1",)), Task("a_b", metrics=("f1",))])
        with pytest.raises(TaskError, match="what Trainer reports itself"):
            MultiTaskMetrics([Task("samples", metrics=("per_second",))])
    finally:
        METRICS.clear()
        METRICS.update(before)


def test_a_task_without_a_metric_is_refused_at_the_start():
    with pytest.raises(TaskError, match="the task has no metric"):
        check_scorable([Task("t", OwnHead())])


UNLABELLED = [{"text": "w1"}, {"text": "w2"}]


@pytest.mark.parametrize(
    "data",
    [{"train": ROWS}, {"train": ROWS, "validation": []}, {"train": ROWS, "validation": UNLABELLED}],
    ids=["none", "empty", "unlabelled"],
)
def test_part_of_the_training_rows_stands_in_for_a_missing_validation_split(data):
    whole = Task("whole", data={"train": ROWS, "validation": ROWS[:3]})
    (first, kept), held = hold_out([Task("t", data=data), whole], seed=1)
    assert kept is whole and held == {"t": (2, 20)}
    train, validation = (first.data[split]["text"] for split in ("train", "validation"))
    assert len(train) == 18 and not set(train) & set(validation) and len(set(train) | set(validation)) == 20
    again = hold_out([Task("t", data=data)], seed=1)[0][0].data["validation"]["text"]
    assert list(again) == list(validation)


def test_a_single_training_row_cannot_be_shared_out():
    with pytest.raises(DataError, match="too few training rows to hold any out; got: 1"):
        hold_out([Task("t", Regression(), data=[{"text": "w1", "label": 0.5}])], seed=1)


PROOF = {
    "reload": {"folder": "f", "bit_identical": True, "logits_compared": 3, "bytes": {}},
    "mixed_batch": {
        "rows": 4,
        "tasks": 2,
        "largest_difference": 1e-7,
        "predictions_equal": False,
        "within_rounding": True,
    },
}


def test_a_failed_proof_ends_the_run():
    require_proof(PROOF)
    with pytest.raises(CheckpointError, match="NOT IDENTICAL"):
        require_proof({**PROOF, "reload": {**PROOF["reload"], "bit_identical": False}})
    with pytest.raises(CheckpointError, match="NOT IDENTICAL"):
        require_proof({**PROOF, "reload": {**PROOF["reload"], "logits_compared": 0}})
    with pytest.raises(RoutingError, match="DIFFERENT"):
        require_proof({**PROOF, "mixed_batch": {**PROOF["mixed_batch"], "within_rounding": False}})


def test_classification_has_a_metric_and_passes():
    check_scorable([Task("score", Classification(2)), Task("score_b", Regression())])
