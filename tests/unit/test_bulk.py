"""Whole files answered in parts: nothing lost and nothing twice, wherever a run stopped."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import multiprocessing
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from hfadapt import Engine, MultiTaskModel
from hfadapt.cli.group import cli
from hfadapt.errors import ConfigError, DataError
from hfadapt.inference import bulk as bulk_module
from hfadapt.inference.bulk import Bulk, Done, answer_files
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, tiny_tokenizer

NAMES = ("topic", "score", "same", "tags", "labels")
ROWS = [{"text": f"w{i} w{i + 1}" + " w3" * (i % 7), "text_pair": f"w{i + 2}"} for i in range(23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("bulk")
    tiny_model("bert").save_pretrained(here / "base")
    tiny_tokenizer().save_pretrained(here / "base")
    MultiTaskModel.from_pretrained(str(here / "base"), tasks=every_toy_task(), method="lora").save_pretrained(
        here / "a"
    )
    return here / "a"


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.from_pretrained(folder)


@pytest.fixture(scope="module")
def want(engine):
    answers = []
    for i, row in enumerate(ROWS):
        pairs = [row["text_pair"] if name == "same" else None for name in NAMES]
        found = engine.predict([row["text"]] * len(NAMES), NAMES, pairs)
        answers.append({"row": i, **{k: v for one in found for k, v in
                                     ((one.task, one.label), (f"{one.task}_score", one.score))}})  # fmt: skip
    return json.loads(json.dumps(answers))


def written(path):
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=5)
    elif ".csv" in path.name or ".tsv" in path.name:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w", newline="") as file:
            rows = csv.DictWriter(file, ["text", "text_pair"], delimiter="\t" if ".tsv" in path.name else ",")
            rows.writeheader()
            rows.writerows(ROWS)
    else:
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def of(folder, tmp_path, *inputs, **options):
    options = {"tasks": NAMES, "rows_per_part": 5, **options}
    return Bulk(str(folder), tuple(map(str, inputs)), str(tmp_path / "out"), **options)


def read(tmp_path):
    found = []
    for path in sorted((tmp_path / "out").glob("answers-*")):
        if path.suffix == ".parquet":
            found += pq.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            found += list(csv.DictReader(path.open(newline="")))
        else:
            found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.tsv", "rows.csv.gz", "rows.jsonl"])
def test_every_row_of_a_file_is_answered_by_every_task(folder, engine, want, tmp_path, name):
    done = answer_files(of(folder, tmp_path, written(tmp_path / name)), engine=engine)
    assert done == Done(parts=5, rows=23)
    assert [{k: v for k, v in row.items() if k != "file"} for row in read(tmp_path)] == want
    assert answer_files(of(folder, tmp_path, tmp_path / name), engine=engine) == Done(before=5)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_answers_in_columns(folder, engine, want, tmp_path, form):
    answer_files(of(folder, tmp_path, written(tmp_path / "rows.jsonl"), format=form), engine=engine)
    found = read(tmp_path)
    assert [str(row["topic"]) for row in found] == [str(row["topic"]) for row in want]
    assert [json.loads(row["tags"]) for row in found] == [row["tags"] for row in want]
    assert [float(row["score"]) for row in found] == [row["score"] for row in want]


def test_a_run_that_was_killed_goes_on_where_it_stopped(folder, engine, want, tmp_path, monkeypatch):
    """Once in the middle of a part, once with a half-written part on the disk, once with a full disk."""
    job = of(folder, tmp_path, written(tmp_path / "rows.parquet"), written(tmp_path / "more.jsonl"))
    parts, write = [], bulk_module.write_part

    def killed(path, rows):
        parts.append(path.name)
        if len(parts) == 3:
            (path.parent / f".{path.name}.x.tmp").write_text("{half")
            raise KeyboardInterrupt
        write(path, rows)

    monkeypatch.setattr(bulk_module, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        answer_files(job, engine=engine)
    monkeypatch.setattr(bulk_module, "write_part", write)
    calls, sync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left[\\s\\S]*run the same again"):
        answer_files(job, engine=engine)
    assert not list((tmp_path / "out").glob(".answers-*"))
    done = answer_files(job, engine=engine)
    assert (done.before, done.parts) == (3, 7)
    both = [{k: v for k, v in row.items() if k != "file"} for row in read(tmp_path)]
    assert both == [*want, *want]


def test_workers_share_the_parts(folder, engine, want, tmp_path):
    job = of(folder, tmp_path, written(tmp_path / "rows.csv"))
    bulk_module.open_run(job)
    done = [bulk_module._work(job, index, 3, engine) for index in range(3)]
    assert [one.parts for one in done] == [2, 2, 1] and sum(one.rows for one in done) == 23
    assert [row["row"] for row in read(tmp_path)] == list(range(23))


@pytest.mark.thorough
def test_a_worker_that_is_killed_loses_nothing_and_does_nothing_twice(folder, engine, want, tmp_path, monkeypatch):
    """Two processes; one gets no further than its first part, as if it had been killed there."""
    job = of(folder, tmp_path, written(tmp_path / "rows.csv"))
    context = multiprocessing.get_context("spawn")
    with monkeypatch.context() as patch:
        start = context.Process.start

        def start_and_kill(process):
            index = process._args[1]
            start(process)
            if index == 1:
                process.kill()

        patch.setattr(context.Process, "start", start_and_kill)
        with pytest.raises(DataError, match="a worker was killed[\\s\\S]*-9"):
            answer_files(job, workers=2)
    assert sum(len(path.read_text().splitlines()) for path in (tmp_path / "out").glob("answers-*")) == 13
    assert answer_files(job, workers=2) == Done(parts=2, rows=10, before=3)
    assert [{k: v for k, v in row.items() if k != "file"} for row in read(tmp_path)] == want


def test_answers_of_another_run_are_not_mixed(folder, engine, tmp_path):
    path = written(tmp_path / "rows.jsonl")
    answer_files(of(folder, tmp_path, path, tasks="topic"), engine=engine)
    with pytest.raises(DataError, match="another run[\\s\\S]*tasks: \\['topic'\\], now \\['score'\\]"):
        answer_files(of(folder, tmp_path, path, tasks="score"), engine=engine)
    path.write_text(path.read_text() + '\n{"text": "w1", "text_pair": "w2"}')
    with pytest.raises(DataError, match="another run[\\s\\S]*files"):
        answer_files(of(folder, tmp_path, path, tasks="topic"), engine=engine)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "w1"}\n{"text": null}', "row 1, column 'text'.*not a text"),
        ("a.jsonl", '{"text": "w1"}\n{"text": ', "row 1: not JSON"),
        ("a.jsonl", '{"text": "w1"}\n[1]', "row 1: not an object"),
        ("a.jsonl", '{"txt": "w1"}', "no column 'text'.*txt"),
        ("a.csv", "id,txt\n1,w1", "no column 'text'.*txt"),
        ("a.csv", "id,text\n1,w1\n2", "row 1: a row has too few fields"),
        ("a.parquet", "PAR0", "cannot be read"),
        ("a.csv.gz", "no gzip", "cannot be read"),
        ("a.csv", b"text\n\xff\xfe", "cannot be read"),
        ("a.txt", "w1", "no table that is read here"),
    ],
)
def test_bad_files_are_refused_by_name(folder, engine, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        answer_files(of(folder, tmp_path, tmp_path / name, tasks="topic"), engine=engine)
    assert not list((tmp_path / "out").glob("answers-*"))


def test_bad_arguments(folder, engine, tmp_path):
    path = written(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="no task 'topc'[\\s\\S]*topic"):
        answer_files(of(folder, tmp_path, path, tasks="topc"), engine=engine)
    with pytest.raises(DataError, match="no such file"):
        of(folder, tmp_path, tmp_path / "none.csv")
    for options in ({"format": "xml"}, {"rows_per_part": 0}):
        with pytest.raises(ConfigError):
            of(folder, tmp_path, path, **options)


def test_the_command_answers_files_and_goes_on(folder, want, tmp_path):
    path = written(tmp_path / "rows.parquet")
    line = ["predict", str(folder), "--input", str(path), "--output", str(tmp_path / "out"), "--json"]
    line += ["--tasks", ",".join(NAMES), "--rows-per-part", "10"]
    said = [CliRunner().invoke(cli, line) for _ in range(2)]
    assert [json.loads(one.stdout) for one in said] == [
        {"parts": 3, "rows": 23, "parts_before": 0},
        {"parts": 0, "rows": 0, "parts_before": 3},
    ]
    assert [{k: v for k, v in row.items() if k != "file"} for row in read(tmp_path)] == want
    wrong = CliRunner().invoke(cli, ["predict", str(folder), "--input", str(path)])
    assert wrong.exit_code == 2 and "--output" in wrong.output
