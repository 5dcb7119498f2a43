"""``pipeline("hfadapt", folder)`` answers as `Predictor` does, whatever texts come in."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils.data import Dataset, IterableDataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hfadapt
from hfadapt.errors import ConfigError, DataError, after_import
from hfadapt.inference.pipeline import TaskPipeline
from hfadapt.inference.predict import Predictor, to_dict
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, tiny_tokenizer

TEXTS = ["w1 w2 w3", "w60", "w7 w8 w9 w10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of every kind of task, on a base that has a name."""
    place = tmp_path_factory.mktemp("pipeline")
    tiny_model("bert").save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    model = hfadapt.MultiTaskModel.from_pretrained(place / "base", tasks=every_toy_task(), method="lora")
    model.save_pretrained(place / "tasks")
    return place / "tasks"


@pytest.fixture(scope="module")
def answers(folder: Path) -> TaskPipeline:
    return pipeline("hfadapt", model=str(folder))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.from_folder(folder)


def plain(found):
    """Numbers as texts that a batch of another width does not change."""
    if isinstance(found, float):
        return pytest.approx(found, abs=1e-5)
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return [plain(value) for value in found] if isinstance(found, list) else found


def test_one_text_is_answered_by_every_task_that_reads_one(answers, predictor):
    found = answers("w1 w2 w3")
    assert [one["task"] for one in found] == ["topic", "score", "tags", "labels"]
    assert found == [plain(to_dict(one)) for one in predictor.predict_all("w1 w2 w3", predictor.fitting(False))]
    pair = answers({"text": "w1", "text_pair": "w2 w3"})
    assert [one["task"] for one in pair] == ["same", "span"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_texts_of_several_tasks_in_one_call(answers, predictor, batch_size):
    rows = [
        {"text": "w1 w2", "task": "topic"},
        {"text": "w3", "text_pair": "w4 w5", "task": "same"},
        {"text": "w6", "task": "tags"},
        {"text": "w90", "text_pair": "w1 w2 w3 w4", "task": "span"},
    ]
    found = answers(rows, batch_size=batch_size)
    wanted = predictor.predict(
        [row["text"] for row in rows], [row["task"] for row in rows], [row.get("text_pair") for row in rows]
    )
    assert found == [plain(to_dict(one)) for one in wanted]


def rows_of_torch() -> Dataset:
    return KeyDataset([{"sentence": text} for text in TEXTS], "sentence")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TEXTS)


@pytest.mark.parametrize(
    "given",
    [lambda: list(TEXTS), lambda: tuple(TEXTS), lambda: (text for text in TEXTS), rows_of_torch, Stream],
    ids=["list", "tuple", "generator", "data set", "stream"],
)
def test_what_holds_texts_is_answered_in_order(answers, given):
    found = list(answers(given(), tasks="topic", batch_size=2))
    assert [(one["text"], one["task"]) for one in found] == [(text, "topic") for text in TEXTS]


def test_a_generator_is_read_a_batch_at_a_time(answers):
    taken = []

    def texts():
        for text in TEXTS:
            taken.append(text)
            yield text

    found = iter(answers(texts(), tasks="topic", batch_size=1))
    next(found)
    assert len(taken) < len(TEXTS)


def test_tasks_of_the_pipeline_and_of_a_call(folder):
    chosen = pipeline("hfadapt", model=str(folder), tasks=["topic", "score"])
    assert [one["task"] for one in chosen("w1")] == ["topic", "score"]
    assert chosen("w1", tasks="score")["task"] == "score"
    assert chosen([]) == []


def test_a_model_that_is_there_already_and_its_folder_with_a_tokenizer(tmp_path, folder):
    model = hfadapt.MultiTaskModel.from_pretrained(folder)
    made = pipeline("hfadapt", model=model, tokenizer=tiny_tokenizer(), device=-1)
    wanted = made("w1 w2", tasks="topic")
    made.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer_config.json").is_file()
    assert not list((tmp_path / "saved").glob("*.py"))
    again = pipeline("hfadapt", model=tmp_path / "saved")
    assert again("w1 w2", tasks="topic") == plain(wanted)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: p({"txt": "w1"}), "Did you mean 'text'"),
        (lambda p: p({"text": "w1", "label": 3}), "unknown key 'label'"),
        (lambda p: p({}), "no text"),
        (lambda p: p(3), "not a text"),
        (lambda p: p([None]), "not a text"),
        (lambda p: p("w1", tasks="topics"), "Did you mean 'topic'"),
        (lambda p: p("w1", tasks="same"), "second text"),
        (lambda p: p("w1", tasks=[]), "no task is named"),
        (lambda p: p(["w1"], tasks="topic", batch_size=0), "batch_size"),
    ],
    ids=["mistyped key", "another key", "no key", "number", "none", "task", "pair", "no task", "batch"],
)
def test_mistakes(answers, call, match):
    with pytest.raises(DataError, match=match):
        call(answers)


def test_what_has_no_tasks_is_refused(answers):
    with pytest.raises(ConfigError, match="no tasks"):
        pipeline("hfadapt", model=tiny_model("bert"), tokenizer=tiny_tokenizer())
    with pytest.raises(ConfigError, match="num_workers=2"):
        answers(["w1"], num_workers=2)


def test_a_function_is_called_once_after_a_module_or_at_once(tmp_path, monkeypatch):
    (tmp_path / "late_library.py").write_text("loaded = True")
    (tmp_path / "late_calls.py").write_text(
        "import sys\ncalls = []\ndef note():\n    calls.append(sys.modules['late_library'].loaded)\n"
        "def note_too():\n    calls.append('too')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # as an import of hfadapt that failed halfway and comes again
        after_import.call("late_library", "late_calls:note")
    after_import.call("late_library", "late_calls:note_too")
    for _ in range(2):  # as is_available() of many libraries, which does not import it
        assert find_spec("late_library") is not None
    assert "late_calls" not in sys.modules
    import late_library  # pyright: ignore[reportMissingImports]
    from late_calls import calls  # pyright: ignore[reportMissingImports]

    assert late_library.loaded and calls == [True, "too"]
    after_import.call("late_library", "late_calls:note")
    assert calls == [True, "too", True]
    assert not [finder for finder in sys.meta_path if getattr(finder, "waits_for", [""])[0] == "late_library"]
