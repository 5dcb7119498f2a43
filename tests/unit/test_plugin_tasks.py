"""Plugins bring metrics and kinds of heads: tasks, folders and recipes name them as they do hfadapt's own."""

from __future__ import annotations

import importlib.metadata
import logging
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import hfadapt
from hfadapt import Classification, MultiTaskModel, Task, hookimpl, plugins
from hfadapt.errors import TaskError
from hfadapt.plugins import loading
from hfadapt.recipes.config import read_recipe
from hfadapt.testing.toy import toy_batch, toy_model, toy_rows
from hfadapt.training import MultiTaskMetrics, find_metric


class Kappa:
    """Cohen's kappa of two classes; an object that says its direction and range."""

    greater_is_better = True
    low, high = -1.0, 1.0

    def __call__(self, scored):
        guessed, labels = np.asarray(scored.predictions), np.asarray(scored.labels)
        chance = sum((guessed == c).mean() * (labels == c).mean() for c in np.unique(labels))
        return ((guessed == labels).mean() - chance) / (1 - chance)


@dataclass(frozen=True)
class Ordinal(Classification):
    """Classes in an order."""

    kind: ClassVar[str] = "ordinal"


def adding(things):
    def register(registry):
        for name, thing in things.items():
            registry.add(name, thing)

    return register


@pytest.fixture
def install(monkeypatch):
    def put(**hooks):
        module = types.ModuleType("mine_module")
        for name, things in hooks.items():
            setattr(module, name, hookimpl(adding(things)))
        entry = types.SimpleNamespace(
            name="mine", value="mine_module", load=lambda: module, dist=types.SimpleNamespace(name="mine", version="1")
        )
        monkeypatch.setattr(loading, "entry_points", lambda group: [entry] if group == "hfadapt" else [])
        plugins.reload()

    yield put
    monkeypatch.setattr(loading, "entry_points", importlib.metadata.entry_points)
    plugins.reload()


def status():
    return next(record for record in plugins.report() if record.name == "mine")


def test_a_metric_of_a_plugin_scores_a_task(install):
    install(register_metrics={"kappa": Kappa()})
    assert status().status == "loaded", status().error
    task = Task("topic", Classification(2), data={"train": toy_rows("class", 8, 1)}, metrics="kappa")
    found = find_metric("kappa")
    assert (found.greater_is_better, found.low, found.high) == (True, -1.0, 1.0)
    assert MultiTaskMetrics([task]).direction("topic_kappa") is True


def test_a_metric_goes_with_its_plugin(install):
    install(register_metrics={"kappa": Kappa()})
    install()
    with pytest.raises(TaskError, match="no metric 'kappa'"):
        find_metric("kappa")
    with pytest.raises(TaskError, match="'kappa' does not fit"):
        Task("topic", Classification(2), metrics="kappa")


def test_a_head_of_a_plugin_is_saved_and_read(install, tmp_path):
    install(register_heads={"ordinal": Ordinal})
    tasks = [Task("stars", Ordinal(2), data={"train": toy_rows("class", 8, 1)})]
    model = toy_model(tasks)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path, base=hfadapt.testing.tiny.tiny_model("bert"))
    assert type(again.tasks[0].head) is Ordinal
    batch = toy_batch(tasks)
    assert torch.equal(again.heads["stars"].out_proj.weight, model.heads["stars"].out_proj.weight)
    assert again(**batch).logits.shape == model(**batch).logits.shape


def test_a_recipe_names_it(install):
    install(register_heads={"ordinal": Ordinal})
    text = "model: m\nmethod: lora\ntasks:\n  - {name: stars, data: d.csv, head: {kind: ordinal, num_labels: 3}}\n"
    assert read_recipe(text).tasks[0].head == Ordinal(3)


@pytest.mark.parametrize(
    ("hook", "things", "says"),
    [
        ("register_metrics", {"accuracy": Kappa()}, "'accuracy' is one of hfadapt's"),
        ("register_metrics", {"kappa": Kappa}, "a function of hfadapt.training.Scored"),
        ("register_metrics", {"kappa": 3}, "a function of hfadapt.training.Scored"),
        ("register_heads", {"ordinal": Ordinal(2)}, "a subclass of hfadapt.Head"),
        ("register_heads", {"other": Ordinal}, "kind = 'other'"),
        ("register_heads", {"span": Ordinal}, "'span' is one of hfadapt's"),
    ],
)
def test_what_is_none_is_named_and_skipped(install, caplog, hook, things, says):
    with caplog.at_level(logging.WARNING):
        install(**{hook: things})
        record = status()
    assert record.status == "failed" and says in record.error
    assert "mine" in caplog.text
