"""Two ways to write a thing in a recipe come to the same settings, and what differs is what another run would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfadapt.recipes.compare import differences
from hfadapt.recipes.config import read_recipe
from hfadapt.recipes.config.load import SECTIONS
from hfadapt.recipes.settings import settings_of

BASE = "model: m\ntasks: [sms_spam]\nmethod: lora\n"

SAME = {
    "a method by its name": ("method: lora", "method: {method: lora}"),
    "a method in a list": ("method: lora", "method: [lora]"),
    "a method's default": ("method: lora", "method: {method: lora, layers: all}"),
    "a preset and what it stands for": ("method: mam", "method: {method: mam}"),
    "a task by its name": ("tasks: [sms_spam]", "tasks: [{name: sms_spam}]"),
    "data of the task's name": ("tasks: [sms_spam]", "tasks: [{name: sms_spam, data: sms_spam}]"),
    "what a data set tells": (
        "tasks: [sms_spam]",
        "tasks: [{name: sms_spam, head: {kind: classification, num_labels: 2}, metrics: f1}]",
    ),
    "columns of their own names": ("tasks: [sms_spam]", "tasks: [{name: sms_spam, columns: {text: text}}]"),
    "splits of their own names": ("tasks: [sms_spam]", "tasks: [{name: sms_spam, splits: {test: test}}]"),
    "a task of GLUE": (
        "tasks: [{name: a, data: mrpc}]",
        "tasks: [{name: a, data: 'glue:mrpc', metrics: [accuracy, f1]}]",
    ),
    "a file, and the split that it is": ("tasks: [{name: a, data: a.csv}]", "tasks: [{name: a, data: {train: a.csv}}]"),
    "one metric and a list of it": (
        "tasks: [{name: a, data: a.csv, metrics: f1}]",
        "tasks: [{name: a, data: a.csv, metrics: [f1]}]",
    ),
    "a head by its kind": (
        "tasks: [{name: a, data: a.csv, head: regression}]",
        "tasks: [{name: a, data: a.csv, head: {kind: regression, dropout: 0.1}}]",
    ),
    "a task's regularizer": (
        "tasks: [{name: sms_spam, regularizer: smart}]",
        "tasks: [{name: sms_spam, regularizer: {name: smart, weight: 1}}]",
    ),
    "a strategy by its name": ("mixing: annealed", "mixing: {strategy: {name: annealed, end: 0.2}}"),
    "mixing left out": ("", "mixing: {strategy: annealed, batch_size: 32}"),
    "a regularizer by its name": ("regularizer: smart", "regularizer: {name: smart, epsilon: 1e-5}"),
    "one baseline": ("baselines: frozen_head", "baselines: {frozen_head: {}}"),
    "baselines in another order": (
        "baselines: [frozen_head, full_finetuning]",
        "baselines: [full_finetuning, frozen_head]",
    ),
    "no baseline": ("", "baselines: []"),
    "early stopping": ("early_stopping: {}", "early_stopping: {patience: 3, threshold: 0}"),
    "no layers dropped": ("", "adapter_drop: null"),
    "numbers": ("training: {learning_rate: 1e-3}", "training: {learning_rate: 0.001}"),
    "hfadapt's default of a training field": ("", "training: {eval_strategy: epoch, per_device_eval_batch_size: 64}"),
    "transformers' default of a training field": (
        "training: {}",
        "training: {num_train_epochs: 3, lr_scheduler_type: linear}",
    ),
    "one tracker and a list of it": ("training: {report_to: tensorboard}", "training: {report_to: [tensorboard]}"),
    "no tracker": ("", "training: {report_to: []}"),
    "the seed": ("", "seed: 42"),
    "another folder": ("output: a", "output: b"),
}

OTHER = {
    "an option of the method": ("method: lora", "method: {method: lora, r: 4}", {"method.r": (8, 4)}),
    "a second method": (
        "method: lora",
        "method: [lora, lhuc]",
        {"method.1.method": (None, "lhuc")},
    ),
    "the order of tasks": (
        "tasks: [sms_spam, wn_relation]",
        "tasks: [wn_relation, sms_spam]",
        {"tasks": (["sms_spam", "wn_relation"], ["wn_relation", "sms_spam"])},
    ),
    "a strategy": (
        "mixing: {strategy: {name: annealed, end: 0.5}}",
        "mixing: {strategy: sqrt}",
        {"mixing.strategy.name": ("annealed", "sqrt"), "mixing.strategy.end": (0.5, None)},
    ),
    "a field that one leaves to its default": (
        "",
        "training: {eval_strategy: steps, num_train_epochs: 4}",
        {"training.eval_strategy": ("epoch", "steps"), "training.num_train_epochs": (3.0, 4.0)},
    ),
    "a baseline": (
        "",
        "baselines: {frozen_head: {learning_rate: 1e-2}}",
        {"baselines": ([], ["frozen_head"]), "baselines.frozen_head.learning_rate": (None, 0.01)},
    ),
    "a regularizer": ("", "regularizer: r3f", {"regularizer.name": (None, "r3f")}),
    "the seed": ("seed: 1", "seed: 2", {"seed": (1, 2)}),
}


def recipe(line: str):
    """The recipe with a line in place of its own with that key."""
    key = line.partition(":")[0]
    lines = [own for own in BASE.splitlines() if own.partition(":")[0] != key]
    return read_recipe("\n".join([*lines, line]))


@pytest.mark.parametrize(("short", "long"), SAME.values(), ids=SAME)
def test_two_ways_to_write_it_are_no_difference(short: str, long: str) -> None:
    assert differences({"short": settings_of(recipe(short)), "long": settings_of(recipe(long))}) == {}


@pytest.mark.parametrize(("one", "other", "expected"), OTHER.values(), ids=OTHER)
def test_what_differs_is_told_as_an_override_would_write_it(one: str, other: str, expected: dict) -> None:
    found = differences({"one": settings_of(recipe(one)), "other": settings_of(recipe(other))})
    assert {path: tuple(values.values()) for path, values in found.items()} == expected


def test_a_relative_path_is_that_of_the_folder_where_the_run_was_started(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "own.csv").write_text("text,label\nx,0\n")
    relative = recipe("tasks: [{name: a, data: own.csv}]")
    whole = recipe(f"tasks: [{{name: a, data: {tmp_path / 'a' / 'own.csv'}}}]")
    assert settings_of(relative, tmp_path / "a") == settings_of(whole, tmp_path / "b")
    assert settings_of(relative, tmp_path / "a") != settings_of(relative, tmp_path / "b")


def test_every_section_of_a_recipe_is_compared() -> None:
    # `output` says nothing of what a run does, and `fast` is gone once it is applied
    known = {path.partition(".")[0] for path in settings_of(recipe("regularizer: smart"))}
    assert known | {"output", "fast"} >= set(SECTIONS)
