"""Mistakes by what each part of their errors says: the place, the value as given, the choices and a step to take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hfadapt
from hfadapt import Classification, MultiLabel, MultiTaskModel, OwnHead, Span, Task
from hfadapt.data import bundled
from hfadapt.data.columns import read_columns
from hfadapt.data.glue import glue_task
from hfadapt.data.sources import load_splits
from hfadapt.errors import HFAdaptError
from hfadapt.inference.bulk import Bulk
from hfadapt.inference.tables import read_parts
from hfadapt.multitask.heads import head_from_dict
from hfadapt.multitask.metrics import find_metric, register_metric
from hfadapt.recipes.config import load_recipe, read_recipe
from hfadapt.recipes.results import RunResult
from hfadapt.routing.composition import parse, steps_of
from hfadapt.testing.tiny import tiny_model
from hfadapt.training.regularizers.regularization import regularize

BERT = tiny_model("bert", "sequence-classification", seed=0)
ADAPTED = copy.deepcopy(BERT)
hfadapt.attach(ADAPTED, "lora", names=["a", "b"], seed=0)


def read(head: Any, *values: Any) -> Any:
    task = Task("t", head, [{"text": "a b", "label": value} for value in values])
    return read_columns(task, "train", load_splits(task)["train"])


def rows_of(name: str, text: str) -> Callable[[Path], Any]:
    """Reads a table that holds a text."""

    def reads(folder: Path) -> Any:
        (folder / name).write_text(text)
        return list(read_parts(folder / name, ["text"], 2))

    return reads


def combine(**options: Any) -> Any:
    return hfadapt.combine(ADAPTED, {"a": 1.0, "b": 1.0}, name="ab", **options)


#: What is done wrong in a folder, and words of where, got, allowed and try of its error.
MISTAKES: dict[str, tuple[Callable[[Path], Any], str, str, str, str]] = {
    "a taken name of a composition": (
        lambda _: hfadapt.compose(ADAPTED, "a", hfadapt.Stack("a", "b")), "Bert", "a", "beside a, b", "'a2'"),
    "save to a number": (lambda _: hfadapt.save(ADAPTED, 3), "folder", "3", "a path", "my_adapter"),
    "save to an empty path": (lambda _: hfadapt.save(ADAPTED, ""), "folder", "''", "a path", "working folder"),
    "save no adapter": (lambda f: hfadapt.save(ADAPTED, f, []), "", "names=()", "None for all", "leave names out"),
    "a card that is a word": (
        lambda f: hfadapt.save(ADAPTED, f, card="x"), "hfadapt.save", "'x'", "a function", "README.md"),
    "verify no adapter": (lambda _: hfadapt.verify(ADAPTED, []), "verify", "names=()", "None for all", "leave names"),
    "combine by ties without a density": (
        lambda _: combine(method="ties"), "combine", "density=None", "magnitude_prune", "density=0.5"),
    "combine with a density too much": (
        lambda _: combine(method="cat", density=0.5), "combine", "density=0.5", "ties", "leave density out"),
    "combine with a density above 1": (
        lambda _: combine(method="ties", density=2.0), "combine", "2.0", "at most 1", "density=0.5"),
    "a map that is none": (
        lambda _: hfadapt.attach(copy.deepcopy(BERT), "bottleneck", arch={}), "Bert", "dict", "Map", "probe"),
    "pack into an unknown dtype": (
        lambda _: hfadapt.pack(copy.deepcopy(BERT), "flaot32"), "pack", "'flaot32'", "int8", "'float32'"),
    "a composition of a number": (lambda _: parse(3), "composition", "3", "'stack'", "{'stack': ['a', 'b']}"),
    "steps of a number": (lambda _: steps_of(3), "composition", "3", "Stack", "a list of names"),
    "Parallel inside": (
        lambda _: steps_of(hfadapt.Parallel("a", "b")), "composition", "Parallel", "Average", "hfadapt.active"),
    "an unknown head": (
        lambda _: head_from_dict({"kind": "clasification"}), "head", "'clasification'", "regression", "classification"),
    "a metric under a taken name": (
        lambda _: register_metric("accuracy", len), "register_metric", "'accuracy'", "f1", "another name"),
    "an unknown metric to find": (
        lambda _: find_metric("acuracy"), "metric", "'acuracy'", "accuracy", "'accuracy'"),
    "a metric that is a number": (
        lambda _: register_metric("m", 3), "register_metric", "3", "a function", "register_metric"),
    "a metric of no direction": (
        lambda _: register_metric("m", len, greater_is_better="up"), "'m'", "'up'", "True or False", "for an error"),
    "a metric without end": (
        lambda _: register_metric("m", len, low=0.0, high=float("inf")), "'m'", "inf", "finite", "low=0.0"),
    "a metric upside down": (
        lambda _: register_metric("m", len, low=1.0, high=0.0), "'m'", "1.0 to 0.0", "low <", "low=0.0, high=1.0"),
    "tasks that are a number": (
        lambda _: MultiTaskModel.from_base(tiny_model("bert"), 3), "tasks", "3", "hfadapt.Task", "Task('name'"),
    "a base with adapters to load on": (lambda f: load_on_adapted(f), "Bert", "a, b", "without adapters", "detach"),
    "an answer of no tokens": (
        lambda _: Span(max_answer_tokens=0), "Span", "0", "1 or more", "max_answer_tokens=1"),
    "a span that is a word": (
        lambda _: read_span("x"), "row 0", "'x'", "answer_start", "'text': []"),
    "a span before its context": (
        lambda _: read_span({"text": ["a"], "answer_start": [-1]}), "row 0", "-1", "0 or more", "context.find"),
    "an own head's label that is a word": (
        lambda _: OwnHead().check_labels(["x"], "t, train"), "row 0", "'x'", "label names", "label_names"),
    "labels among zeros and ones": (
        lambda _: read(MultiLabel(2), [0, 0], [1]), "row 1", "[1]", "zeros and ones", "[0, 1] for these labels"),
    "an unknown GLUE task": (lambda _: glue_task("sst3"), "glue_task", "'sst3'", "sst2", "'sst2'"),
    "an unknown data set": (
        lambda _: bundled.folder("nothing-like"), "bundled", "'nothing-like'", bundled.BUNDLED[0], "hfadapt data"),
    "an unknown split of a data set": (
        lambda _: bundled.rows(bundled.BUNDLED[0], "trian"), "data set", "'trian'", "validation", "'train'"),
    "no file to answer": (
        lambda f: Bulk("adapter", (), str(f)), "Bulk", "inputs=()", "one file", "texts.csv"),
    "a file to answer that is not there": (
        lambda f: Bulk("adapter", (str(f / "no.csv"),), str(f)), "Bulk", "no.csv", "files that are there", "ls "),
    "a table of an unknown kind": (rows_of("x.docx", ""), "x.docx", ".docx", ".csv", "x.jsonl"),
    "a row of too few fields": (rows_of("x.csv", "id,text\n1\n"), "row 0", "2", "2 fields", "quotes around"),
    "a line that is no JSON": (rows_of("x.jsonl", "{"), "row 0", "Expecting", "one JSON object", "json.dumps"),
    "a line that is no object": (rows_of("x.jsonl", "3"), "row 0", "int", "{...}", "{'text': ...}"),
    "a column that is misspelt": (rows_of("x.jsonl", '{"txt": "a"}'), "row 0", "txt", "with text", "'txt'"),
    "a CSV without the column": (rows_of("x.csv", "id,txt\n1,a\n"), "x.csv", "id, txt", "with text", "'txt'"),
    "a recipe that is not there": (
        lambda f: load_recipe(f / "no.yaml"), "no.yaml", "No such file", "a YAML file", "hfadapt train examples"),
    "a recipe that is no text": (
        lambda f: (f / "a.yaml").write_bytes(b"model: \xd0\xff") and load_recipe(f / "a.yaml"), "a.yaml", "at byte 7",
        "UTF-8", "the name"),
    "a recipe that is no YAML": (
        lambda _: read_recipe("tasks: [a\nb: }"), "line", "b: }", "key: value", "quotes around"),
    "a run that is not there": (
        lambda f: RunResult.read(f), "test_", "no results", "filled to its end", "hfadapt train RECIPE"),
    "a frame with two columns of a name": (
        lambda _: splits_of([["w1", "w2", 0]], ["text", "text", "label"]), "task 't', train", "Duplicate",
        "different names", "duplicated()"),
    "a frame of texts and numbers": (
        lambda _: splits_of([["w1", 0], [2, 1]], ["text", "label"]), "task 't', train", "column text",
        "values of one kind", "astype"),
    "a regularizer of no Trainer": (
        lambda _: regularize(3, "smart"), "regularize", "3", "transformers.Trainer", "Trainer(model=model"),
    "a teacher that is not there": (
        lambda f: read_teacher(f), "test_", "no ", "the same regularizer", "older checkpoint"),
}  # fmt: skip


def load_on_adapted(folder: Path) -> Any:
    MultiTaskModel.from_base(tiny_model("bert"), [Task("t", Classification(2))], "lora").save_pretrained(folder)
    base = tiny_model("bert")
    hfadapt.attach(base, "lora", names=["a", "b"])
    return MultiTaskModel.from_pretrained(folder, base=base)


def splits_of(rows: list[list[Any]], columns: list[str]) -> Any:
    frame = pytest.importorskip("pandas", reason="the frames are its").DataFrame(rows, columns=columns)
    return load_splits(Task("t", Classification(2), {"train": frame}))


def read_span(answer: Any) -> Any:
    return Span().check_labels([answer], "t, train")


def read_teacher(folder: Path) -> Any:
    from hfadapt.training.regularizers.proximal import read_teacher as read_it

    return read_it(folder)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_part_of_an_error_says_what_is_true_of_this_mistake(mistake: str, tmp_path: Path) -> None:
    act, *words = MISTAKES[mistake]
    with pytest.raises(HFAdaptError) as caught:
        act(tmp_path)
    error = caught.value
    for part, word in zip(("where", "got", "allowed", "try_"), words, strict=True):
        said = getattr(error, part)
        assert said not in (None, "") and word in str(said), (part, word, str(error))
        assert str(said) in str(error)
