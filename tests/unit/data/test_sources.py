"""Where rows come from, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json

import datasets
import numpy as np
import pytest

import hfadapt
from hfadapt import Classification, MultiLabel, Regression, Span, Task, TaskMixture, TokenClassification
from hfadapt.data import load_splits, read_file
from hfadapt.data.columns import read_columns
from hfadapt.errors import DataError, TaskError

ROWS = [{"text": f"w{i}", "label": i % 2} for i in range(6)]


def write(path, kind):
    if kind.startswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        with gzip.open(path, "wt") if kind.endswith("gz") else path.open("w") as file:
            file.write(text)
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_files_of_every_kind_give_the_same_rows(tmp_path, kind):
    assert read_file(write(tmp_path / f"train.{kind}", kind)).to_list() == ROWS


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: ROWS,
        lambda folder: datasets.Dataset.from_list(ROWS),
        lambda folder: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
        lambda folder: {"train": ROWS, "dev": ROWS},
        lambda folder: {"train": str(write(folder / "train.csv", "csv"))},
        lambda folder: write(folder / "some.jsonl", "jsonl"),
        lambda folder: str(write(folder / "train.parquet", "parquet").parent),
    ],
    ids=["list", "Dataset", "DatasetDict", "mapping", "mapping-of-paths", "file", "folder"],
)
def test_every_form_of_data_gives_a_training_split(tmp_path, make):
    splits = load_splits(Task("t", data=make(tmp_path)))
    assert splits["train"].to_list() == ROWS


def test_usual_names_of_the_validation_split_are_found():
    assert len(load_splits(Task("t", data={"train": ROWS, "dev": ROWS[:2]}))["validation"]) == 2


def test_split_names_can_be_given():
    task = Task("t", data={"a": ROWS, "b": ROWS[:1]}, splits={"train": "a", "test": "b"})
    assert len(load_splits(task)["test"]) == 1


def refused(match, task):
    with pytest.raises((DataError, TaskError), match=match) as caught:
        TaskMixture([task])
    return str(caught.value)


def test_missing_column_lists_columns_and_suggests():
    message = refused("no column 'sentence'", Task("t", data=ROWS, columns={"text": "sentence"}))
    assert "text, label" in message and "task 't', train" in message
    assert "Did you mean 'label'" in refused("no column 'lable'", Task("t", data=ROWS, columns={"label": "lable"}))


@pytest.mark.parametrize(
    ("label", "match"),
    [
        (2, "outside the head's classes"),
        (-1, "outside"),
        (None, "missing"),
        (float("nan"), "missing"),
        (0.5, "outside"),
        (float("inf"), "outside"),
    ],
)
def test_bad_class_label_is_named_with_row_and_range(label, match):
    rows = [*[{"text": "w", "label": 1.0 if isinstance(label, float) else 1}] * 3, {"text": "w", "label": label}]
    message = refused(match, Task("t", data=rows))
    assert "row 3" in message and "0..1" in message


@pytest.mark.parametrize("label", [float("nan"), float("inf"), None, 5.1])
def test_bad_number_is_named_with_row_and_bounds(label):
    message = refused(
        "label", Task("t", Regression(0, 5), data=[{"text": "w", "label": 1.0}, {"text": "w", "label": label}])
    )
    assert "row 1" in message and "[0, 5]" in message


def test_empty_task_is_refused():
    refused("empty", Task("t", data={"train": []}))


def test_missing_training_split_lists_what_is_there():
    assert "validation" in refused("no training split", Task("t", data={"validation": ROWS}))


def test_task_without_data_is_refused():
    refused("no data", Task("t"))


def test_unknown_file_kind_and_missing_file_are_refused(tmp_path):
    refused("no such file", Task("t", data={"train": str(tmp_path / "train.csv")}))
    refused("unknown kind", Task("t", data={"train": str(tmp_path / "train.xlsx")}))


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": ')
    assert "train.jsonl" in refused("cannot read", Task("t", data=tmp_path))


def test_unknown_data_set_name_says_what_is_accepted():
    assert "load_dataset" in refused("load_dataset failed", Task("t", data="no-such/dataset:rte"))


def test_text_that_is_no_text_is_named_with_its_row():
    assert "row 1" in refused(
        "does not hold text", Task("t", data=[{"text": "a", "label": 0}, {"text": None, "label": 0}])
    )


def test_task_name_used_twice_is_refused():
    with pytest.raises(TaskError, match=r"'t' is used twice"):
        TaskMixture([Task("t", data=ROWS), Task("t", data=ROWS)])


def test_string_labels_are_looked_up_in_the_names():
    rows = [{"text": "a", "label": "spam"}, {"text": "b", "label": "ham"}]
    task = Task("t", data=rows, label_names=("ham", "spam"))
    columns = read_columns(task, "train", load_splits(task)["train"])
    assert [int(x[0]) for x in columns.labels] == [1, 0]
    assert "Did you mean 'spam'" in refused(
        "not one of", Task("t", data=[{"text": "a", "label": "spm"}], label_names=("ham", "spam"))
    )


def test_class_label_features_bring_their_names():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_list([{"text": "a", "label": 1}], features=features)
    task = Task("t", data=data)
    assert read_columns(task, "train", data).labels[0].tolist() == [1.0]


def test_hidden_test_labels_of_glue_count_as_unlabelled():
    task = Task("t", data={"train": ROWS, "test": [{"text": "a", "label": -1}]})
    assert read_columns(task, "test", load_splits(task)["test"]).labels is None


def test_multi_label_takes_ones_and_zeros_indices_or_names():
    task = Task("t", MultiLabel(3), label_names=("a", "b", "c"))
    rows = task.head.check_labels([[1, 0, 1], [2], ["b", "c"]], "x", task.label_names)
    np.testing.assert_array_equal(np.stack(rows), [[1, 0, 1], [0, 0, 1], [0, 1, 1]])
    with pytest.raises(DataError, match="need a list"):
        task.head.check_labels([1], "x")


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Task("a b"), "bad task name"),
        (lambda: Task("t", Classification(1)), "too few classes"),
        (lambda: Task("t", metrics=("pearson",)), "does not fit the head"),
        (lambda: Task("t", metrics=("acuracy",)), "Did you mean 'accuracy'"),
        (lambda: Task("t", columns={"sentence": "x"}), "unknown role"),
        (lambda: Task("t", TokenClassification(3), pair="separate"), "one sequence"),
        (lambda: Task("t", Span(), pair="separate"), "one sequence"),
        (lambda: Task("t", loss_weight=0), "loss_weight"),
        (lambda: Task("t", max_length=2), "max_length"),
        (lambda: Task("t", label_names=("a", "b", "c")), "label_names do not match"),
        (lambda: Task("t", head=3), "not a head"),
        (lambda: Task("t", Regression(low=1.0)), "bounds"),
        (lambda: Task("t", Classification(2, pooling="max")), "unknown pooling"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(build, match):
    with pytest.raises(TaskError, match=match):
        build()


def test_a_task_survives_its_description():
    task = Task("t", Regression(0, 5, pooling="cls"), metrics=("spearman",), pair="separate", max_length=64)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    with pytest.raises(TaskError, match="unknown field"):
        Task.from_dict({"name": "t", "head": {"kind": "regression", "lo": 1}})


def test_own_head_beside_others_is_refused():
    with pytest.raises(TaskError, match="OwnHead cannot stand beside"):
        TaskMixture([Task("a", hfadapt.OwnHead(), data=ROWS), Task("b", data=ROWS)])
