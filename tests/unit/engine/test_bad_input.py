"""What cannot be answered is refused by name, and the next good request gets the bits that it got before."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.errors import CheckpointError, DataError, HFAdaptError, TaskError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import PAIRED, REQUESTS, TASKS, ask, saved


@pytest.fixture
def goes_on(engine, alone):
    """The engine as it was, whatever a test asked of it."""
    yield
    assert ask(engine, REQUESTS[:7]) == alone[:7]
    assert [task.name for task in engine.tasks] == [task.name for task in TASKS]


def kind(given: object) -> str:
    """A name that is the same in every process, which an address is not."""
    return type(given).__name__


NO_LISTS = [3, 3.5, b"w1", bytearray(b"w1"), {"w1": 1}, {"w1"}, object(), torch.tensor(3), math.nan]


@pytest.mark.parametrize("given", [None, *NO_LISTS], ids=kind)
def test_what_is_no_list_of_texts_is_refused(engine, goes_on, given):
    for ask_it in (engine.predict, engine.check):
        with pytest.raises(DataError, match="texts: neither a text nor a list of texts"):
            ask_it(given, "topic")
        with pytest.raises(DataError, match="tasks: neither a text nor a list of texts"):
            ask_it("w1", given)
    with pytest.raises(DataError, match="text 0: not a text"):
        engine.predict_all(given, ["topic"])


@pytest.mark.parametrize("given", NO_LISTS, ids=kind)
def test_what_is_no_list_of_second_texts_or_of_tasks_is_refused(engine, goes_on, given):
    with pytest.raises(DataError, match="pairs: neither a text nor a list of texts"):
        engine.predict("w1", "same", given)
    with pytest.raises(DataError, match="tasks: neither a text nor a list of texts"):
        engine.predict_all("w1", given)
    with pytest.raises(DataError, match="text 0: not a text"):
        engine.predict_all("w1", "same", given)


@pytest.mark.parametrize(
    ("texts", "place", "message"),
    [
        (["w1", 3, None], 1, "not a text; got: 3"),
        (["w1", "w2", None], 2, "not a text; got: None"),
        (["w1", "w2", b"w3"], 2, "not a text; got: b'w3'"),
        ([["w1"], "w2", "w3"], 0, "not a text; got: \\['w1'\\]"),
        (["w1", "\ud800 w2", "w3"], 1, "half a character"),
        (["w1", "w2", "w3 \udcff"], 2, "half a character"),
        (["w1", "w2 " * 3_400_000, "w3"], 1, "10,200,000 characters; allowed: at most 1,000,000"),
    ],
)
def test_one_text_among_others_that_is_none_is_named_by_its_place(engine, goes_on, texts, place, message):
    with pytest.raises(DataError, match=f"text {place}: .*{message}"):
        engine.predict(texts, ["topic", "score", "tags"])
    if None not in texts:  # which stands for no second text
        with pytest.raises(DataError, match=f"text {place}: .*{message}"):
            engine.predict(["w1"] * 3, ["same"] * 3, texts)


@pytest.mark.parametrize("task", ["topc", "", "Topic", "topic ", "topic\0", 3, None, b"topic", ("topic",)])
def test_an_unknown_task_is_refused_everywhere(engine, goes_on, task):
    for call in (
        lambda: engine.predict(["w1", "w2"], ["topic", task]),
        lambda: engine.check(["w1", "w2"], ["topic", task]),
        lambda: engine.predict_all("w1", ["topic", task]),
        lambda: engine.remove(task),
        lambda: engine.replace(task, "nowhere"),
    ):
        with pytest.raises(DataError, match="no task[\\s\\S]*allowed: topic, kind"):
            call()


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\0", "\u200b", "\ufeff"], ids=kind)
def test_an_empty_text_is_a_text_and_has_its_own_bits(engine, goes_on, text):
    """A classifier reads it as its begin and its end; of no words, no word has a tag."""
    asked = [(text, task.name, PAIRED.get(task.name)) for task in TASKS]
    by_itself = [ask(engine, [one])[0] for one in asked]
    together = ask(engine, asked + REQUESTS[:5])
    assert together[: len(asked)] == by_itself
    tags = next(one for one in by_itself if one.task == "tags")
    assert [word for word, _ in tags.label] == text.split()


@pytest.mark.parametrize("given", [3, None, b"folder", ["folder"], object()], ids=kind)
def test_what_is_no_folder_is_refused(engine, goes_on, given):
    for call in (
        lambda: engine.add(given),
        lambda: engine.replace("topic", given),
        lambda: Engine.from_pretrained([given]),
        lambda: Engine.from_pretrained({"topic": given}),
        *([] if isinstance(given, list) else [lambda: Engine.from_pretrained(given)]),
    ):
        with pytest.raises(CheckpointError, match="no folder to load from"):
            call()


@pytest.mark.parametrize("name", [3, b"topic", ["topic"], {"topic": 1}], ids=kind)
def test_what_is_no_name_is_refused(engine, goes_on, folder, name):
    for call in (
        lambda: engine.add(folder, "topic", called=name),
        lambda: engine.add(folder, name, called="again"),
        lambda: engine.replace("topic", folder, name),
    ):
        with pytest.raises(TaskError, match="bad (called|name)"):
            call()


def test_a_folder_for_another_base_is_refused(engine, goes_on, folder, tmp_path):
    """One of another type, one of another size, and one whose weights alone are others."""
    same = tiny_model("bert")
    with torch.no_grad():
        for parameter in same.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    wide = type(same)(type(same.config)(**{**same.config.to_dict(), "intermediate_size": 48}))
    for number, base in enumerate((tiny_model("roberta"), wide, same)):
        base.save_pretrained(tmp_path / f"base{number}")
        tiny_tokenizer().save_pretrained(tmp_path / f"base{number}")
        other = saved(tmp_path / f"base{number}", tmp_path / f"other{number}", [Task("x", Classification(2))], "lora")
        for call in (
            lambda other=other: engine.add(other),
            lambda other=other: engine.replace("topic", other),
            lambda other=other: Engine.from_pretrained([folder, other]),
        ):
            with pytest.raises(CheckpointError, match=f"other{number}"):
                call()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_wherever_they_stand(
    engine, goes_on, folder, further, tmp_path, number
):
    places = {
        "the base": lambda model: next(p for n, p in model.base.named_parameters() if "hfadapt" not in n),
        "an adapter": lambda model: next(p for n, p in model.base.named_parameters() if "hfadapt" in n),
        "a head": lambda model: next(model.heads.parameters()),
    }
    for place in places.values():
        model = MultiTaskModel.from_pretrained(folder)
        place(model).data.view(-1)[-1] = number
        with pytest.raises(CheckpointError, match="not finite numbers"):
            Engine(model, tiny_tokenizer())
    for place, key in enumerate([*load_file(further / "model.safetensors")][::5]):
        bad = rewritten(further, tmp_path / str(place), first_of(key), number)
        for call in (lambda bad=bad: engine.add(bad), lambda bad=bad: engine.replace("topic", bad)):
            with pytest.raises(CheckpointError, match="not finite numbers"):
                call()


def first_of(key):
    """The first number of one tensor, and nothing of others."""
    return lambda name, one: one.view(-1)[: int(name == key)]


def rewritten(folder, place, where, number):
    """A copy of a folder with another number in some places of its tensors, and no word of what it held before."""
    shutil.copytree(folder, place)
    tensors = load_file(place / "model.safetensors")
    for name, one in tensors.items():
        where(name, one).fill_(number)
    save_file(tensors, place / "model.safetensors", {"format": "pt", "hfadapt": "1"})
    config = json.loads((place / "hfadapt_config.json").read_text("utf-8"))
    del config["weights_sha256"]
    (place / "hfadapt_config.json").write_text(json.dumps(config))
    return place


def test_finite_weights_that_overflow_are_named_by_their_task_and_touch_no_other(engine, alone, further, tmp_path):
    engine.add(rewritten(further, tmp_path / "huge", lambda _, one: one, 3e38), called="huge")
    for call in (
        lambda: engine.predict("w1 w2", "huge"),
        lambda: engine.predict(["w1 w2", "w1 w2"], ["topic", "huge"]),
        lambda: engine.predict_all("w1 w2", ["topic", "huge"]),
    ):
        with pytest.raises(DataError, match="task 'huge': the answer is not a number"):
            call()
    assert ask(engine, REQUESTS) == alone

    # beside a row that overflows, in one forward, the others have their bits
    def logits(tasks):
        requests = engine._requests(["w1 w2 w3"] * len(tasks), tasks, None)
        found = engine._outputs(requests, functools.partial(engine._planned, engine.model.tasks))
        return [one[:2] for one, _ in found]

    overflown, beside = logits(["huge", "topic"])
    assert not np.isfinite(overflown).all() and np.array_equal(beside, logits(["topic"])[0])


def test_a_base_that_writes_does_not_write_from_what_is_no_number():
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_model("gpt2").config).eval()
    model = MultiTaskModel.from_base(base, [Task(name, hfadapt.OwnHead()) for name in ("a", "b")], "lora")
    before = Engine(copy.deepcopy(model), tiny_tokenizer("left"), max_new_tokens=3).predict("w1 w2", "a")
    for parameter in hfadapt.parameters_of(model.base, "b").values():
        parameter.data.fill_(1e15)  # whose products are finite, and the products of these not
    engine = Engine(model, tiny_tokenizer("left"), max_new_tokens=3)
    with pytest.raises(DataError, match="task 'b': the answer is not a number"):
        engine.predict(["w1 w2", "w1 w2"], ["a", "b"])
    assert engine.predict("w1 w2", "a") == before


def test_every_refusal_is_an_error_of_ours_with_all_its_parts(engine, goes_on):
    for call in (
        lambda: engine.predict(3, "topic"),
        lambda: engine.predict("w1", "topc"),
        lambda: engine.predict("w1 " * 400_000, "topic"),
        lambda: engine.add(3),
        lambda: engine.add("folder", 3),
    ):
        with pytest.raises(HFAdaptError) as caught:
            call()
        error = caught.value
        assert all((error.what, error.where, error.got, error.allowed, error.try_))


def test_no_task_is_none_and_not_all(engine, goes_on):
    assert engine.predict_all("w1", []) == []
    assert len(engine.predict_all("w1", None, "w2")) > 1
