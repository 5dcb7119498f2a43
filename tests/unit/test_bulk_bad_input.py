"""Rows, files and folders that cannot be answered end a bulk run by name, and what was answered before them stays."""

from __future__ import annotations

import json
import os
import shutil
from queue import SimpleQueue

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfadapt import Engine, MultiTaskModel
from hfadapt.errors import CheckpointError, DataError
from hfadapt.inference import bulk as bulk_module
from hfadapt.inference.bulk import Bulk, Done, answer_files
from hfadapt.inference.folders import digest_of
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, tiny_tokenizer

GOOD = [{"text": f"w{i} w{i + 1}", "text_pair": f"w{i}"} for i in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("bulk")
    tiny_model("bert").save_pretrained(here / "base")
    tiny_tokenizer().save_pretrained(here / "base")
    model = MultiTaskModel.from_pretrained(str(here / "base"), tasks=every_toy_task(), method="lora")
    model.save_pretrained(here / "a")
    return here / "a"


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.from_pretrained(folder)


def of(folder, tmp_path, path, **options):
    return Bulk(str(folder), str(path), str(tmp_path / "out"), **{"tasks": "topic", "rows_per_part": 3, **options})


def lines(path, rows):
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows))
    return path


def answers(tmp_path):
    return [json.loads(one) for path in sorted((tmp_path / "out").glob("answers-*")) for one in path.open()]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": None}, "row 4, column 'text': not a text"),
        ({"text": 3}, "row 4, column 'text': not a text"),
        ({"text": ["w1"]}, "row 4, column 'text': not a text"),
        ({"text": "w1 \ud800"}, "row 4, task 'topic': not a text; got: half a character"),
        ({"text": "w1 " * 3_400_000}, "row 4, task 'topic': the text is too long; got: 10,200,000 characters"),
        ({"txt": "w1"}, "row 4: no column 'text'"),
        ("w1", "row 4: not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "row 4(: not JSON|, column 'text': not a text)"),
        ('{"text": ' + "[" * 200_000, "row 4: not JSON"),
        ("[]", "row 4: not an object"),
    ],
    ids=["none", "number", "list", "half a character", "10 MB", "no column", "no json", "digits", "brackets", "array"],
)
def test_a_bad_row_is_named_by_file_and_number_and_the_run_goes_on_once_it_is_mended(
    folder, engine, tmp_path, bad, message
):
    path = lines(tmp_path / "rows.jsonl", [*GOOD[:4], bad, *GOOD[5:]])
    with pytest.raises(DataError, match=f"rows.jsonl, {message}"):
        answer_files(of(folder, tmp_path, path), engine=engine)
    assert [one["row"] for one in answers(tmp_path)] == [0, 1, 2]
    want = engine.predict([one["text"] for one in GOOD], ["topic"] * 7)
    mended = lines(tmp_path / "mended.jsonl", GOOD)
    assert answer_files(of(folder, tmp_path / "again", mended), engine=engine) == Done(parts=3, rows=7)
    assert [one["topic_score"] for one in answers(tmp_path / "again")] == [one.score for one in want]


def test_a_pair_that_is_missing_is_named_by_its_row(folder, engine, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [*GOOD[:2], {"text": "w1", "text_pair": None}])
    with pytest.raises(DataError, match="row 2, column 'text_pair': not a text"):
        answer_files(of(folder, tmp_path, path, tasks="same"), engine=engine)


def test_empty_texts_are_answered_as_the_engine_answers_them(folder, engine, tmp_path):
    rows = [{"text": one} for one in ("", " ", "w1", "\0", "\u200b")]
    answer_files(of(folder, tmp_path, lines(tmp_path / "rows.jsonl", rows), tasks=("topic", "tags")), engine=engine)
    want = [engine.predict(row["text"], "topic")[0].score for row in rows]
    assert [one["topic_score"] for one in answers(tmp_path)] == want


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\nw1\n" + "w2 " * 50_000 + "\nw3", "row 1: a row cannot be read[\\s\\S]*131,072 characters"),
        ('text\nw1\nw2\n"w3\nw4\n', "row 2: a row cannot be read"),
    ],
    ids=["long", "open quote"],
)
def test_a_csv_row_that_cannot_be_read_is_named(folder, engine, tmp_path, content, message):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        answer_files(of(folder, tmp_path, tmp_path / "rows.csv"), engine=engine)


def test_long_texts_of_other_formats_are_read(folder, engine, tmp_path):
    text = "w2 " * 50_000
    pq.write_table(pa.table({"text": ["w1", text]}), tmp_path / "rows.parquet")
    assert answer_files(of(folder, tmp_path, tmp_path / "rows.parquet"), engine=engine).rows == 2
    assert answers(tmp_path)[1]["topic_score"] == engine.predict(text, "topic")[0].score


def test_a_file_whose_name_is_no_text_is_refused(folder, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    with open(path, "w") as file:
        file.write('{"text": "w1"}')
    with pytest.raises(DataError, match="the name of a file is no text"):
        of(folder, tmp_path, path)


def test_adapters_that_change_between_the_start_and_the_reading_are_refused(folder, tmp_path, monkeypatch):
    mine = shutil.copytree(folder, tmp_path / "mine")
    path, stock = lines(tmp_path / "rows.jsonl", GOOD), bulk_module.open_run

    def opened(bulk):
        try:
            return stock(bulk)
        finally:
            other = MultiTaskModel.from_pretrained(str(folder.parent / "base"), tasks=every_toy_task(), method="par_bn")
            other.save_pretrained(mine)

    with monkeypatch.context() as patch:
        patch.setattr(bulk_module, "open_run", opened)
        with pytest.raises(DataError, match="the folder of adapters changed since the run began"):
            answer_files(of(mine, tmp_path, path))
    told = SimpleQueue()
    bulk_module._worker(of(mine, tmp_path, path), 1, 2, told, digest_of(folder))
    assert "the folder of adapters changed since the run began" in told.get()
    assert not answers(tmp_path)
    with pytest.raises(DataError, match="another run[\\s\\S]*adapters"):
        answer_files(of(mine, tmp_path, path))


def test_a_base_that_is_another_is_refused_before_anything_is_answered(folder, tmp_path):
    tiny_model("roberta").save_pretrained(tmp_path / "roberta")
    tiny_tokenizer().save_pretrained(tmp_path / "roberta")
    path = lines(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(CheckpointError, match="another base"):
        answer_files(of(folder, tmp_path, path, base=str(tmp_path / "roberta")))
    assert not answers(tmp_path)


def test_an_answer_that_is_no_number_is_named_by_its_rows_and_task(folder, tmp_path):
    model = MultiTaskModel.from_pretrained(folder)
    for parameter in model.heads["topic"].parameters():
        parameter.data.fill_(3e38)
    engine = Engine(model, tiny_tokenizer())
    path = lines(tmp_path / "rows.jsonl", GOOD)
    with pytest.raises(DataError, match="rows 0 to 2, task 'topic': the answer is not a number"):
        answer_files(of(folder, tmp_path, path, tasks=("score", "topic")), engine=engine)
    assert not answers(tmp_path)
