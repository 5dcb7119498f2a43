"""Metrics against scikit-learn and scipy, and over a corpus of several tasks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hfadapt import Classification, Regression, Task, TokenClassification
from hfadapt.errors import DataError, TaskError
from hfadapt.multitask.metrics import entities
from hfadapt.training import METRICS, MultiTaskMetrics, Scored, register_metric

STREAM = np.random.default_rng(0)


def classes(count, rows=200):
    return STREAM.integers(0, count, rows), STREAM.integers(0, count, rows)


@pytest.mark.parametrize("count", [2, 5])
def test_class_metrics_equal_scikit_learn(count):
    sklearn = pytest.importorskip("sklearn.metrics")
    p, r = classes(count)
    scored = Scored(p, r, count)
    assert METRICS["accuracy"](scored) == pytest.approx(sklearn.accuracy_score(r, p), abs=1e-12)
    average = "binary" if count == 2 else "macro"
    assert METRICS["f1"](scored) == pytest.approx(sklearn.f1_score(r, p, average=average), abs=1e-12)
    assert METRICS["matthews"](scored) == pytest.approx(sklearn.matthews_corrcoef(r, p), abs=1e-12)


def test_multi_label_metrics_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    p, r = STREAM.integers(0, 2, (50, 4)), STREAM.integers(0, 2, (50, 4))
    assert METRICS["f1"](Scored(p, r, 4)) == pytest.approx(sklearn.f1_score(r, p, average="micro"), abs=1e-12)
    assert METRICS["accuracy"](Scored(p, r, 4)) == pytest.approx(sklearn.accuracy_score(r, p), abs=1e-12)


def test_correlations_equal_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    x, y = STREAM.integers(0, 9, 100).astype(float), STREAM.normal(size=100)
    assert METRICS["pearson"](Scored(x, y)) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert METRICS["spearman"](Scored(x, y)) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman"])
def test_constant_predictions_correlate_with_nothing(name):
    assert METRICS[name](Scored(np.ones(10, int), np.arange(10) % 2)) == 0


def test_entities_follow_conlleval():
    assert entities(["B-PER", "I-PER", "O", "B-LOC"]) == {("PER", 0, 1), ("LOC", 3, 3)}
    assert entities(["I-PER", "I-LOC", "B-LOC"]) == {("PER", 0, 0), ("LOC", 1, 1), ("LOC", 2, 2)}
    assert entities(["S-A", "B-B", "E-B", "O"]) == {("A", 0, 0), ("B", 1, 2)}


def test_entity_f1_counts_whole_entities():
    names = ("O", "B-PER", "I-PER", "B-LOC")
    scored = Scored([np.array([1, 2, 0, 3])], [np.array([1, 0, 0, 3])], 4, names)
    assert METRICS["entity_f1"](scored) == pytest.approx(0.5)
    with pytest.raises(TaskError, match="names of the tags"):
        METRICS["entity_f1"](Scored([], [], 4))


def test_span_metrics_compare_tokens():
    scored = Scored(np.array([[2, 4], [1, 1]]), np.array([[2, 4], [2, 3]]))
    assert METRICS["exact_match"](scored) == 0.5
    assert METRICS["span_f1"](scored) == 0.5
    half = Scored(np.array([[1, 2]]), np.array([[2, 3]]))
    assert METRICS["span_f1"](half) == 0.5


TASKS = [Task("a", Classification(2), metrics=("accuracy", "f1")), Task("b", Regression(0, 5))]


def test_corpus_metrics_are_split_by_task_and_averaged():
    logits = np.array([[1.0, 2.0], [3.0, 1.0], [0.1, -100], [4.0, -100], [9.0, -100]])
    found = MultiTaskMetrics(TASKS)(
        SimpleNamespace(predictions=(logits, np.array([0, 0, 1, 1, 1])), label_ids=np.array([1, 1, 0, 4, 5.0])[:, None])
    )
    want = np.corrcoef([0.1, 4, 5], [0, 4, 5])[0, 1]
    assert found["a_accuracy"] == 0.5 and found["b_pearson"] == pytest.approx(want)
    assert found["macro"] == pytest.approx((0.5 + want) / 2)


def test_unlabelled_and_absent_tasks_are_left_out():
    found = MultiTaskMetrics(TASKS)(
        SimpleNamespace(predictions=(np.zeros((2, 2)), np.array([1, 1])), label_ids=np.full((2, 1), np.nan))
    )
    assert found == {}


def test_several_tasks_without_task_ids_are_refused():
    with pytest.raises(DataError, match="which task a row belongs to"):
        MultiTaskMetrics(TASKS)(SimpleNamespace(predictions=np.zeros((2, 2)), label_ids=np.zeros((2, 1))))


def test_users_register_their_own_metric():
    register_metric("constant", lambda scored: 0.25)
    try:
        task = Task("t", TokenClassification(2), metrics=("constant",))
        prediction = SimpleNamespace(predictions=np.zeros((1, 4)), label_ids=np.zeros((1, 2)))
        assert MultiTaskMetrics([task])(prediction)["t_constant"] == 0.25
        with pytest.raises(TaskError, match="registered twice"):
            register_metric("constant", lambda scored: 0.5)
    finally:
        del METRICS["constant"]
