"""Metrics have a direction and a range: stars, best models, averages and reports read lower-is-better ones rightly."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hfadapt import Classification, Regression, Task
from hfadapt.errors import ConfigError, TaskError
from hfadapt.recipes.arm import macro_average, merge
from hfadapt.recipes.report import legend, result_rows
from hfadapt.recipes.results import ArmResult, RunResult, directions
from hfadapt.training import METRICS, MultiTaskMetrics, Scored, find_metric, macro_of, register_metric

TASKS = (
    Task("a", Classification(2)),
    Task("b", Regression(), metrics=("mse", "pearson")),
    Task("c", Regression()),
)


@pytest.fixture
def metric():
    """Register metrics that are forgotten afterwards."""
    before = dict(METRICS)
    yield register_metric
    METRICS.clear()
    METRICS.update(before)


def test_squared_errors_are_not_added_to_accuracies(caplog):
    with caplog.at_level(logging.WARNING, "hfadapt"):
        metrics = MultiTaskMetrics(TASKS)
    assert metrics.macro.tasks == ("a", "c") and metrics.macro.greater_is_better
    assert "b is left out: lower mse is better" in caplog.text
    logits = np.array([[1.0, 2.0], [3.0, 1.0], [5.0, 0], [9.0, 0], [1.0, 0], [2.0, 0]])
    labels = np.array([1, 1, 1, 1, 3, 4.0])[:, None]
    found = metrics(SimpleNamespace(predictions=(logits, np.array([0, 0, 1, 1, 2, 2])), label_ids=labels))
    assert found["b_mse"] == 40 and found["macro"] == pytest.approx((0.5 + 1) / 2)


def test_errors_alone_are_averaged_and_lower_is_better():
    macro = macro_of([Task(name, Regression(), metrics=("mse",)) for name in "xy"])
    assert macro.tasks == ("x", "y") and not macro.greater_is_better and not macro.left_out
    assert macro.average({"x": 1.0, "y": 3.0}) == 2.0
    assert macro.average({}) is None and math.isnan(macro.average({"x": math.nan}))


def test_a_metric_of_a_third_party_declares_itself(metric):
    class Latency:
        greater_is_better = False
        low, high = 0.0, 1.0

        def __call__(self, scored: Scored) -> float:
            return 0.5

    metric("latency", Latency())
    metric("loss_like", lambda scored: 1.0, greater_is_better=False)
    assert not find_metric("latency").greater_is_better and find_metric("latency").high == 1
    macro = macro_of([*TASKS[:1], Task("d", metrics=("latency",))])
    assert macro.tasks == ("a",) and "lower latency is better" in macro.left_out["d"]
    assert MultiTaskMetrics([Task("e", metrics=("loss_like",))]).direction("eval_e_loss_like") is False


def test_what_is_assumed_of_a_plain_function_is_said(metric, caplog):
    with caplog.at_level(logging.WARNING, "hfadapt"):
        metric("plain", lambda scored: 0.25)
    assert "'plain' does not say whether more of it is better: it is taken as one where higher is better" in caplog.text
    METRICS["by_hand"] = lambda scored: 3.0
    with caplog.at_level(logging.WARNING, "hfadapt"):
        assert find_metric("by_hand").greater_is_better and find_metric("by_hand")(Scored([], [])) == 3
    assert caplog.text.count("'by_hand' does not say") == 1
    macro = macro_of([*TASKS[:1], Task("d", metrics=("plain",))])
    assert macro.left_out == {"d": "plain has no known range"}


@pytest.mark.parametrize(
    "options",
    [{"greater_is_better": "yes"}, {"low": 1, "high": 0}, {"low": math.nan, "high": 1}, {"high": math.inf, "low": 0}],
    ids=str,
)
def test_a_direction_or_range_that_is_none_is_refused(metric, options):
    with pytest.raises(TaskError, match="'odd': bad (greater_is_better|range)"):
        metric("odd", lambda scored: 1.0, **options)
    assert "odd" not in METRICS


def test_a_metric_that_is_no_number_is_named(metric):
    metric("words", lambda scored: "good", greater_is_better=True)
    with pytest.raises(TaskError, match="metric 'words': a metric is no number; got: 'good'"):
        find_metric("words")(Scored([], []))


def test_the_best_model_follows_the_metrics_direction(make_trainer, caplog):
    tasks = [Task("r", Regression(), metrics=("mse",), data=_numbers()), Task("k", data=_classes())]
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
    with caplog.at_level(logging.WARNING, "hfadapt"):
        trainer = make_trainer(tasks=tasks, metric_for_best_model="eval_r_mse", **best)
    assert trainer.args.greater_is_better is False and "of eval_r_mse less is better" in caplog.text
    trainer.train()
    seen = [line["eval_r_mse"] for line in trainer.state.log_history if "eval_r_mse" in line]
    assert trainer.state.best_metric == min(seen) and len(seen) == 2
    for name, want in (("k_accuracy", True), ("macro", True), ("eval_loss", False)):
        assert make_trainer(tasks=tasks, metric_for_best_model=name, **best).args.greater_is_better is want
    with pytest.raises(ConfigError, match="of this metric more is better"):
        make_trainer(tasks=tasks, metric_for_best_model="k_accuracy", greater_is_better=False, **best)


def _numbers():
    rows = [{"text": f"w{i} w{i + 1}", "label": i / 8} for i in range(8)]
    return {"train": rows, "validation": rows[:4]}


def _classes():
    rows = [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(8)]
    return {"train": rows, "validation": rows[:4]}


def arm(name, scores, tasks=TASKS):
    scores = {task: {metric: value} for task, (metric, value) in scores.items()}
    return ArmResult(name, name, scores, macro_average(scores, tasks), 2, 1, 1, 1, 1.0, 1)


def run_result(arms, tasks=TASKS, **others):
    first = {task.name: task.metrics[0] for task in tasks}
    macro = vars(macro_of(tasks))
    return RunResult("m", 1, first, arms, {}, {}, 1.0, directions=directions(tasks), macro=macro, **others)


def test_the_star_marks_the_lowest_error_and_the_highest_accuracy():
    good = arm("good", {"a": ("accuracy", 0.9), "b": ("mse", 0.1), "c": ("pearson", 0.8)})
    bad = arm("bad", {"a": ("accuracy", 0.5), "b": ("mse", 7.0), "c": ("pearson", math.nan)})
    columns, rows = result_rows(run_result((bad, good)))
    assert columns[1:5] == ["a accuracy", "b mse (lower is better)", "c pearson", "macro"]
    assert rows[1][1:5] == ["0.900*", "0.100*", "0.800*", "0.850*"]
    assert rows[0][1:5] == ["0.500", "7.000", "nan", "nan"]
    assert "macro: mean over a, c; b is left out (lower mse is better" in legend(run_result((bad, good)))


def test_a_missing_score_leaves_its_cell_empty():
    _, rows = result_rows(run_result((arm("one", {"a": ("accuracy", 0.9)}),)))
    assert rows[0][1:5] == ["0.900*", "-", "-", "0.900*"]


def test_separate_models_are_averaged_like_the_shared_one():
    scores = {"a": ("accuracy", 0.9), "b": ("mse", 50.0), "c": ("pearson", 0.7)}
    parts = {task: arm(task, {task: score}) for task, score in scores.items()}
    assert merge("full", "full", parts, TASKS).macro == pytest.approx(0.8)


def test_results_of_older_versions_know_the_built_in_directions():
    old = RunResult("m", 1, {"b": "mse"}, (), {}, {}, 1.0)
    assert not old.greater_is_better("mse") and old.greater_is_better("accuracy") and old.greater_is_better("macro")
