"""GLUE's eight tasks on local data of the hub's schema."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from hfadapt import TaskMixture
from hfadapt.data import GLUE, glue_task, glue_tasks
from hfadapt.errors import TaskError
from hfadapt.recipes.build import build_tasks
from hfadapt.recipes.config import load_recipe
from hfadapt.testing.toy import tiny_tokenizer

TEXTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
}
CLASSES = {"mnli": 3}


def local(name):
    """A data set with the columns, features and splits of nyu-mll/glue."""
    count = CLASSES.get(name, 2)
    label = datasets.Value("float32") if name == "stsb" else datasets.ClassLabel(num_classes=count)
    columns = {text: datasets.Value("string") for text in TEXTS[name]}
    features = datasets.Features({**columns, "label": label, "idx": datasets.Value("int32")})

    def split(rows, hidden=False):
        data = [
            {**dict.fromkeys(TEXTS[name], f"w{i} w{i + 1}"), "label": -1 if hidden else i % count, "idx": i}
            for i in range(rows)
        ]
        return datasets.Dataset.from_list(data, features=features)

    splits = {"train": split(6)}
    suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
    for suffix in suffixes:
        splits[f"validation{suffix}"] = split(4)
        splits[f"test{suffix}"] = split(2, hidden=True)
    return datasets.DatasetDict(splits)


def test_all_eight_tasks_read_the_hubs_schema():
    mix = TaskMixture(glue_tasks(data={name: local(name) for name in GLUE}), tiny_tokenizer())
    assert [task.name for task in mix.tasks] == ["cola", "mrpc", "mnli", "rte", "stsb", "sst2", "qqp", "qnli"]
    assert len(mix.eval) == 4 * 8
    assert len(mix.dataset("test")) == 2 * 8
    assert len(mix.dataset("validation_mismatched", ["mnli"])) == 4
    batch = mix.collator([mix.train[i] for i in range(4)])
    assert batch["labels"].shape == (4, 1)


def test_the_ready_recipe_asks_the_hub_for_each_task_and_plans_them(monkeypatch):
    asked = []

    def load_dataset(name, config=None):
        asked.append((name, config))
        return local(config)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    recipe = load_recipe(Path(__file__).parents[3] / "examples" / "glue-pals.yaml")
    mix = TaskMixture(build_tasks(recipe), tiny_tokenizer(), strategy=recipe.mixing.strategy, epoch_steps=2)
    assert asked == [("nyu-mll/glue", name) for name in ("cola", "mrpc", "mnli", "rte", "stsb", "sst2", "qqp", "qnli")]
    assert [(task.name, task.metrics) for task in mix.tasks] == [(task.name, task.metrics) for task in GLUE.values()]
    assert mix.schedule.sizes == (6,) * 8


@pytest.mark.parametrize(
    ("name", "metrics"),
    [("cola", ("matthews",)), ("mrpc", ("accuracy", "f1")), ("stsb", ("pearson", "spearman")), ("qnli", ("accuracy",))],
)
def test_metrics_are_glues(name, metrics):
    assert GLUE[name].metrics == metrics


def test_preset_names_the_hub_and_takes_changes():
    assert GLUE["rte"].data == ("nyu-mll/glue", "rte")
    assert glue_task("rte", pair="separate", max_length=64).max_length == 64
    with pytest.raises(TaskError, match="Did you mean 'mnli'"):
        glue_task("mnl")
