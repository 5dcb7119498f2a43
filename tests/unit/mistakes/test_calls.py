"""Mistakes in calls, configs and data: each is refused with all that an error of ours says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import pipeline

import hfadapt
from hfadapt import Classification, MultiLabel, MultiTaskModel, OwnHead, Regression, Span, Task, TaskMixture
from hfadapt import TokenClassification as Tags
from hfadapt.data.columns import read_columns
from hfadapt.data.sources import load_splits
from hfadapt.errors import HFAdaptError
from hfadapt.inference.predict import Predictor
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_model, toy_tasks

BERT = tiny_model("bert", "sequence-classification", seed=0)
ADAPTED = copy.deepcopy(BERT)
hfadapt.attach(ADAPTED, "lora", names=["a", "b"], seed=0)
PIPELINE: Any = pipeline("text-classification", model=BERT, tokenizer=tiny_tokenizer())
INPUTS = tiny_inputs("bert", batch=4)
MANY = toy_model(toy_tasks(), "lora")


def rows(*values: Any, **columns: Any) -> list[dict[str, Any]]:
    return [{"text": "a b", "label": value, **columns} for value in values]


def read(head: Any, *values: Any, **options: Any) -> Any:
    """The checked columns of training rows with these labels."""
    task = Task("t", head, rows(*values), **options)
    return read_columns(task, "train", load_splits(task)["train"])


def run(task_ids: Any) -> Any:
    return ADAPTED(**INPUTS, task_ids=task_ids)


def attach(method: Any = "lora", *args: Any, **options: Any) -> Any:
    return hfadapt.attach(copy.deepcopy(BERT), method, *args, **options)


def mix(tasks: Any = None, *args: Any, **options: Any) -> Any:
    return TaskMixture(toy_tasks() if tasks is None else tasks, tiny_tokenizer(), *args, **options)


def predict(*args: Any, **options: Any) -> Any:
    return Predictor(MANY, tiny_tokenizer()).predict(*args, **options)


def combine(weights: dict[str, float], **options: Any) -> Any:
    return hfadapt.combine(copy.deepcopy(ADAPTED), weights, name="ab", **options)


NAN = float("nan")
FIRST = MANY.tasks[0].name
MISTAKES: dict[str, Callable[[], Any]] = {
    # which row uses which adapter
    "task_ids of floats": lambda: run(torch.tensor([0.0, 1.0, 0.0, 1.0])),
    "task_ids of truth values": lambda: run(torch.tensor([True, False, True, False])),
    "task_ids of complex numbers": lambda: run(torch.zeros(4, dtype=torch.complex64)),
    "task_ids of two axes": lambda: run(torch.zeros(4, 1, dtype=torch.long)),
    "too few task_ids": lambda: run(torch.zeros(3, dtype=torch.long)),
    "too many task_ids": lambda: run(["a"] * 5),
    "no task_ids in a list": lambda: run([]),
    "a task id that is too large": lambda: run(torch.tensor([0, 1, 2, 0])),
    "a task id below -1": lambda: run(torch.tensor([0, -2, 0, 0])),
    "an unknown name": lambda: run(["a", "b", "c", "a"]),
    "an unknown name for all": lambda: run("c"),
    "a float for all": lambda: run(1.5),
    "a float in a list": lambda: run([0, 1.0, 0, 1]),
    "a truth value in a list": lambda: run([True, False, True, False]),
    "NaN as a task id": lambda: run([NAN, 0, 0, 0]),
    "a dict as task_ids": lambda: run({"a": 1}),
    "a list in the list": lambda: run([["a"], "b", "a", "b"]),
    "a sparse tensor as task_ids": lambda: run(torch.zeros(4, dtype=torch.long).to_sparse()),
    "a meta tensor as task_ids": lambda: run(torch.zeros(4, dtype=torch.long, device="meta")),
    "task_ids of a model of many tasks that are unknown": lambda: MANY(**INPUTS, task_ids="nothing"),
    "no task_ids with many tasks": lambda: MANY(**INPUTS),
    "rows without a task": lambda: MANY(**INPUTS, task_ids=[None, FIRST, FIRST, FIRST]),
    # attach
    "an unknown method": lambda: attach("lroa"),
    "a number as a method": lambda: attach(3),
    "no method": lambda: attach(None),
    "an empty tuple of methods": lambda: attach(()),
    "a class in place of a config": lambda: attach(hfadapt.LoRA),
    "a name with a dot": lambda: attach("lora", "a.b"),
    "an empty name": lambda: attach("lora", ""),
    "a number as a name": lambda: attach("lora", 3),
    "a name of nn.ModuleDict's": lambda: attach("lora", "keys"),
    "no names": lambda: attach("lora", names=[]),
    "a name twice": lambda: attach("lora", names=["x", "x"]),
    "a taken name": lambda: hfadapt.attach(ADAPTED, "lora", "a"),
    "an unknown module to save": lambda: attach("lora", modules_to_save=["clasifier"]),
    "a number as modules to save": lambda: attach("lora", modules_to_save=3),
    "a seed that is a word": lambda: attach("lora", seed="x"),
    "a seed that is too long": lambda: attach("lora", seed=2**70),
    "a folder in place of a model": lambda: hfadapt.attach("bert-base-uncased", "lora"),
    "None in place of a model": lambda: hfadapt.attach(None, "lora"),
    "a pipeline in place of a model": lambda: hfadapt.attach(PIPELINE, "lora"),
    "a MultiTaskModel in place of its base": lambda: hfadapt.attach(MANY, "lora", "more"),
    "a module that is no transformer": lambda: hfadapt.attach(torch.nn.Linear(2, 2), "pal"),
    "target modules that match nothing": lambda: attach(hfadapt.LoRA(target_modules=("qproj",))),
    "a layer that is not there": lambda: attach(hfadapt.LoRA(layers=(99,))),
    "heads that do not divide": lambda: attach(hfadapt.PAL(size=10, num_heads=4)),
    # what is attached
    "activate an unknown name": lambda: hfadapt.activate(ADAPTED, "c"),
    "activate a number": lambda: hfadapt.activate(ADAPTED, 3),
    "activate on a plain model": lambda: hfadapt.activate(copy.deepcopy(BERT), "a"),
    "detach an unknown name": lambda: hfadapt.detach(ADAPTED, "c"),
    "detach a plain model": lambda: hfadapt.detach(copy.deepcopy(BERT)),
    "merge an unknown name": lambda: hfadapt.merge(ADAPTED, "c"),
    "merge a plain model": lambda: hfadapt.merge(copy.deepcopy(BERT)),
    "drop too many layers": lambda: hfadapt.set_adapter_drop(ADAPTED, 99),
    "drop minus one layer": lambda: hfadapt.set_adapter_drop(ADAPTED, -1),
    "drop a word": lambda: hfadapt.set_adapter_drop(ADAPTED, "two"),
    "freeze an unknown name": lambda: hfadapt.unfreeze(ADAPTED, "c"),
    "combine unknown names": lambda: hfadapt.combine(ADAPTED, {"a": 1.0, "c": 1.0}, name="ac"),
    "combine to a rank that no linear has": lambda: combine({"a": 1.0, "b": 1.0}, method="svd", r=999),
    "fuse a number": lambda: hfadapt.add_fusion(copy.deepcopy(ADAPTED), 3),
    "combine with NaN": lambda: hfadapt.combine(ADAPTED, {"a": NAN, "b": 1.0}, name="ab"),
    "combine nothing": lambda: hfadapt.combine(ADAPTED, {}, name="ab"),
    "combine by an unknown way": lambda: hfadapt.combine(ADAPTED, {"a": 1.0}, name="ab", method="tise"),
    "stack of an unknown name": lambda: hfadapt.activate(ADAPTED, hfadapt.Stack("a", "c")),
    "a stack of nothing": lambda: hfadapt.Stack(),
    "an average with NaN": lambda: hfadapt.Average("a", "b", weights=(NAN, 1.0)),
    "an average with one weight too few": lambda: hfadapt.Average("a", "b", weights=(1.0,)),
    "fuse without a layer": lambda: hfadapt.activate(ADAPTED, hfadapt.Fuse("a", "b")),
    # folders
    "save a plain model": lambda: hfadapt.save(copy.deepcopy(BERT), "no/such/folder"),
    "save an unknown name": lambda: hfadapt.save(ADAPTED, "no/such/folder", "c"),
    "load a folder that is not there": lambda: hfadapt.load("no/such/folder", copy.deepcopy(BERT)),
    "load a number": lambda: hfadapt.load(3, copy.deepcopy(BERT)),
    "load onto a name": lambda: hfadapt.load("no/such/folder", "bert"),
    "load with unknown weights": lambda: hfadapt.load("/tmp", copy.deepcopy(BERT), weights="pickle"),
    "load an unknown format": lambda: hfadapt.load("/tmp", copy.deepcopy(BERT), format="pft"),
    "export an unknown format": lambda: hfadapt.export(ADAPTED, "no/such/folder", "a", format="pft"),
    "a base that is not there": lambda: MultiTaskModel.from_pretrained("no/such/folder", tasks=toy_tasks()),
    "a base without tasks": lambda: MultiTaskModel.from_pretrained("no/such/folder"),
    # tasks and heads
    "a task without a name": lambda: Task(""),
    "a task with a bad name": lambda: Task("a b"),
    "a task whose head is a word": lambda: Task("a", "classification"),
    "a task whose head is a class": lambda: Task("a", Classification),
    "an unknown field of a task": lambda: Task("a", datas=[]),  # type: ignore[call-arg]
    "an unknown metric": lambda: Task("a", metrics=["acuracy"]),
    "a metric of another head": lambda: Task("a", Regression(), metrics=["f1"]),
    "an unknown column role": lambda: Task("a", columns={"txt": "x"}),
    "an unknown pair form": lambda: Task("a", pair="both"),
    "tags of separate texts": lambda: Task("a", Tags(3), pair="separate"),
    "a loss weight of 0": lambda: Task("a", loss_weight=0.0),
    "a loss weight of NaN": lambda: Task("a", loss_weight=NAN),
    "a max_length of 1": lambda: Task("a", max_length=1),
    "names that do not match": lambda: Task("a", Classification(3), label_names=["x", "y"]),
    "one class": lambda: Classification(1),
    "a number of classes in words": lambda: Classification("two"),
    "half a class": lambda: Classification(2.5),
    "dropout of 1": lambda: Classification(2, dropout=1.0),
    "dropout of NaN": lambda: Classification(2, dropout=NAN),
    "an unknown pooling": lambda: Classification(2, pooling="men"),
    "smoothing of 1": lambda: Classification(2, label_smoothing=1.0),
    "no labels": lambda: MultiLabel(0),
    "one tag": lambda: Tags(1),
    "bounds upside down": lambda: Regression(low=2.0, high=1.0),
    "half bounds": lambda: Regression(low=2.0),
    "no tasks": lambda: MultiTaskModel.from_base(tiny_model("bert"), []),
    "a string as a task": lambda: MultiTaskModel.from_base(tiny_model("bert"), ["sst2"]),  # type: ignore[list-item]
    "a task twice": lambda: MultiTaskModel.from_base(tiny_model("bert"), [Task("a"), Task("a")]),
    "own heads beside others": lambda: MultiTaskModel.from_base(copy.deepcopy(BERT), [Task("a", OwnHead()), Task("b")]),
    "a base with adapters": lambda: MultiTaskModel.from_base(ADAPTED, [Task("c")]),
    "a route of an unknown task": lambda: MANY.use("nothing", FIRST),
    "a route to an unknown adapter": lambda: MANY.use(FIRST, "nothing"),
    # data
    "no data": lambda: load_splits(Task("a")),
    "data that are a number": lambda: load_splits(Task("a", data=3)),
    "rows that are no dicts": lambda: load_splits(Task("a", data=["x", "y"])),
    "an empty list": lambda: load_splits(Task("a", data=[])),
    "a file that is not there": lambda: load_splits(Task("a", data="nothing.csv")),
    "a file of an unknown kind": lambda: load_splits(Task("a", data={"train": "x.docx"})),
    "a data set that is not there": lambda: load_splits(Task("a", data="no/such-data")),
    "no training split": lambda: load_splits(Task("a", data={"trian": rows(1)})),
    "an unknown split": lambda: load_splits(Task("a", data={"train": rows(1)}, splits={"test": "tst"})),
    "a column that is not there": lambda: read(Classification(), 0, columns={"text": "txt"}),
    "a text that is a number": lambda: read(Classification(2), 0, columns={"text": "label"}),
    "a label out of range": lambda: read(Classification(2), 0, 2),
    "a label below 0": lambda: read(Classification(2), 0, -1),
    "a label of 1.5": lambda: read(Classification(2), 0.0, 1.5),
    "no label": lambda: read(Classification(2), 0, None),
    "a label that is NaN": lambda: read(Classification(2), 0.0, NAN),
    "a label that is no name": lambda: read(Classification(2), "yes", "no"),
    "a label that is a list": lambda: read(Classification(2), [0], [1]),
    "a misspelt label": lambda: read(Classification(2), "yes", "noo", label_names=["no", "yes"]),
    "a number that is a word": lambda: read(Regression(), "warm", "cold"),
    "a number that is infinite": lambda: read(Regression(), 1.0, float("inf")),
    "a number out of bounds": lambda: read(Regression(low=0.0, high=5.0), 1.0, 6.0),
    "several labels that are one": lambda: read(MultiLabel(3), 1, 2),
    "labels that read both ways": lambda: read(MultiLabel(2), [0, 1], [1, 0]),
    "several labels out of range": lambda: read(MultiLabel(3), [5]),
    "tags of words that are no list": lambda: read(Tags(3), 1, 2),
    "a question without a context": lambda: read(Span(), {"text": ["a"], "answer_start": [0]}),
    # mixtures and predictions
    "a mixture of nothing": lambda: mix([]),
    "an unknown strategy": lambda: mix(strategy="anealed"),
    "a strategy that is a number": lambda: mix(strategy=3),
    "an unknown kind of batch": lambda: mix(batch="some"),
    "a batch of no rows": lambda: mix(batch_size=0),
    "a batch of half a row": lambda: mix(batch_size=0.5),
    "minus one step": lambda: mix(epoch_steps=-1),
    "no epochs": lambda: mix(epochs=0),
    "a seed of words": lambda: mix(seed="lucky"),
    "a temperature of 0": lambda: hfadapt.Temperature(t=0.0),
    "predict an unknown task": lambda: predict(["a"], ["nothing"]),
    "predict with too few tasks": lambda: predict(["a", "b"], [FIRST]),
    "predict a pair as one text": lambda: predict(["a"], [MANY.tasks[-1].name]),
    "predict in batches of 0": lambda: predict(["a"], [FIRST], batch_size=0),
    "predict a number": lambda: predict([3], [FIRST]),
    # configs
    "LoRA of rank 0": lambda: hfadapt.LoRA(r=0),
    "LoRA of rank 2.5": lambda: hfadapt.LoRA(r=2.5),
    "LoRA of a rank that is a word": lambda: hfadapt.LoRA(r="eight"),
    "LoRA with dropout 1": lambda: hfadapt.LoRA(dropout=1.0),
    "LoRA with alpha NaN": lambda: hfadapt.LoRA(lora_alpha=NAN),
    "LoRA with an unknown field": lambda: hfadapt.LoRA(rank=8),  # type: ignore[call-arg]
    "LoRA without targets": lambda: hfadapt.LoRA(target_modules=()),
    "a bottleneck of an unknown function": lambda: hfadapt.Bottleneck(non_linearity="rleu"),
    "a bottleneck with reduction 0": lambda: hfadapt.Bottleneck(reduction_factor=0),
    "PAL without heads": lambda: hfadapt.PAL(num_heads=0),
    "a prefix of no tokens": lambda: hfadapt.PrefixConfig(num_virtual_tokens=0),
    "layers in words": lambda: hfadapt.LoRA(layers="some"),
    "an unknown stack": lambda: hfadapt.LoRA(stack="encodr"),
    "a config of an unknown method": lambda: attach({"method": "lroa"}),
    "a config without a method": lambda: attach({"r": 8}),
    "an unknown name of hfadapt's": lambda: hfadapt.attach(BERT, {"method": "lora", "rank": 3}),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_all_that_an_error_says(mistake: str) -> None:
    with pytest.raises(HFAdaptError) as caught:
        MISTAKES[mistake]()
    error = caught.value
    parts = {part: getattr(error, part) for part in ("what", "where", "got", "allowed", "try_")}
    assert all(value not in (None, "") for value in parts.values()), (parts, str(error))


def test_what_runs_a_model_inside_is_told_where_it_is() -> None:
    with pytest.raises(HFAdaptError, match=r"hfadapt\.attach\(pipeline\.model"):
        MISTAKES["a pipeline in place of a model"]()
