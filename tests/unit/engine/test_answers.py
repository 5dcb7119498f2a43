"""The engine: a row has the bits that it has alone, whoever shares its batch and whatever comes and goes meanwhile."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
)

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.errors import ConfigError, DataError, TaskError
from hfadapt.inference.batches import LENGTHS, Shape, padded_length
from hfadapt.inference.predict import Predictor
from hfadapt.inference.proof import RowProof
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from hfadapt_kernels import native
from tests.unit.engine.case import PAIRED, REQUESTS, TASKS, ask, text


def test_every_kind_of_answer_in_one_call_has_the_bits_that_it_has_alone(engine, alone):
    found = ask(engine, REQUESTS)
    assert found == alone
    assert [one.task for one in found] == [name for _, name, _ in REQUESTS]
    kinds = {one.task: one for one in found}
    assert set(kinds["topic"].scores) == {"low", "high"} and kinds["topic"].score == max(kinds["topic"].scores.values())
    assert isinstance(kinds["score"].label, float) and kinds["score"].scores is None
    assert len(kinds["labels"].scores) == 4
    assert kinds["tags"].label[0][1] in ("O", "B", "I")
    if kinds["span"].span is not None:
        assert PAIRED["span"][slice(*kinds["span"].span)] == kinds["span"].label


@pytest.mark.parametrize("seed", range(2))
def test_order_and_neighbours_change_no_bit(engine, alone, seed):
    order = torch.randperm(len(REQUESTS), generator=torch.Generator().manual_seed(seed)).tolist()
    order += order[: 5 * seed]
    engine.token_budget = (4096, 100)[seed]
    assert ask(engine, [REQUESTS[i] for i in order]) == [alone[i] for i in order]


@pytest.mark.skipif(not native.available(), reason="without C++ ops rows go alone where torch's sums hang on others")
def test_rows_of_different_tasks_share_a_forward(engine):
    calls = []
    engine.model.base.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[0]),
                                                with_kwargs=True)  # fmt: skip
    requests = [(text(5, i), TASKS[i % 2].name, None) for i in range(8)]
    ask(engine, requests)  # with the proof
    calls.clear()
    ask(engine, requests)
    assert calls == [8]
    assert all(one["used"] for one in engine.shapes())


def test_a_shape_that_changes_bits_is_not_used():
    """A run whose sums hang on the number of rows is found out, and rows go in batches that keep their bits."""
    sizes = []

    def run(rows):
        sizes.append(len(rows))
        return [(np.float32([row["x"] + (1e-3 if len(rows) > 3 else 0)]), np.float32([])) for row in rows]

    proof = RowProof(run, lambda row: 0)
    shape, other = Shape((16,), (False,)), Shape((32,), (False,))
    rows = [{"x": float(i)} for i in range(6)]
    assert not proof.holds(shape, rows) and proof.most(shape) == 4
    assert not proof.holds(shape, rows[:4]) and proof.most(shape) == 3
    assert proof.holds(shape, rows[:3]) and proof.most(other) > 100
    sizes.clear()
    assert proof.holds(shape, rows[:3]) and not sizes, "a shape is shown once"
    assert [one["used"] for one in proof.shown()] == [False, False, True]


def test_rows_of_refused_shapes_go_in_smaller_batches(engine, alone, monkeypatch):
    monkeypatch.setattr(RowProof, "_shown", lambda self, samples, size: size <= 2)
    assert ask(engine, REQUESTS) == alone


def test_bits_are_those_alone_on_several_threads_too():
    """How torch cuts a tensor among threads hangs on how many rows it has; here on 2 rows of 16 tokens and more."""
    torch.manual_seed(0)
    wide = BertConfig(
        vocab_size=100, hidden_size=1024, num_hidden_layers=1, num_attention_heads=4, intermediate_size=1024
    )
    model = MultiTaskModel.from_base(BertModel(wide).eval(), [Task(name, Classification(3)) for name in "ab"], "lora")
    randomize(model.base)
    engine, before = Engine(model, tiny_tokenizer()), torch.get_num_threads()
    requests = [(text(9, i), "ab"[i % 2], None) for i in range(8)]
    ask(engine, requests[:4])
    try:
        torch.set_num_threads(before + 1)
        alone = [ask(engine, [request])[0] for request in requests]
        for order in (requests, requests[::-1], requests[:3]):
            assert ask(engine, order) == [alone[requests.index(one)] for one in order]
    finally:
        torch.set_num_threads(before)
    # What was shown on fewer threads is shown anew.
    assert {(one["threads"], one["rows"]) for one in engine.shapes()} >= {(before, 4), (before + 1, 8)}


def test_rounding_proves_nothing(folder):
    engine = Engine.from_pretrained(folder, isolation="rounding")
    assert [one.task for one in ask(engine, REQUESTS[:7])] == [task.name for task in TASKS]
    assert engine.shapes() == []


def test_all_tasks_on_one_text(engine, alone):
    names = [task.name for task in TASKS if task.name not in PAIRED]
    found = engine.predict_all(REQUESTS[0][0], names)
    assert found == [one for one in alone[: len(TASKS)] if one.task in names]


def test_a_predictor_and_an_engine_answer_alike(engine, folder):
    predictor = Predictor.from_folder(folder)
    for one, other in zip(ask(engine, REQUESTS[:7]), ask(predictor, REQUESTS[:7]), strict=True):
        assert one.task == other.task and type(one.label) is type(other.label)
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize(("kind", "side"), [("gpt2", "left"), ("t5", "right")])
def test_text_is_written_by_each_prompts_adapter(kind, side):
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    base = auto.from_config(tiny_model(kind).config).eval()
    tasks = [Task(name, hfadapt.OwnHead()) for name in ("a", "b")]
    model = MultiTaskModel.from_base(base, tasks, "lora")
    randomize(model.base)
    engine = Engine(model, tiny_tokenizer(side), max_new_tokens=6)
    requests = [(text(words, words), name, None) for words in (2, 14, 9) for name in "ab"]
    found = ask(engine, requests)
    assert found == [ask(engine, [one])[0] for one in requests]
    assert ask(engine, requests[::-1]) == found[::-1]
    assert len({one.label for one in found}) > 1 and all(one.scores is None for one in found)
    ids = engine.tokenizer(requests[0][0], return_tensors="pt")["input_ids"]
    if kind == "gpt2" and ids[0, -1] == engine.tokenizer.eos_token_id:
        ids = ids[:, :-1]
    with torch.no_grad():
        stock = base.generate(ids, task_ids="a", max_new_tokens=6, do_sample=False, pad_token_id=0)
    stock = stock[0, 1:] if kind == "t5" else stock[0, ids.shape[1] :]
    assert found[0].label == engine.tokenizer.decode(stock, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("texts", "tasks", "pairs", "message"),
    [
        (["w1"], ["topc"], None, "no task 'topc'[\\s\\S]*topic"),
        (["w1"], [3], None, "no task 3"),
        ([3], ["topic"], None, "text 0: not a text; got: 3"),
        ([b"w1"], ["topic"], None, "not a text"),
        (["w1", None], ["topic"] * 2, None, "text 1: not a text"),
        (["w1 \ud800"], ["topic"], None, "half a character"),
        (["w1 " * 3_400_000], ["topic"], None, "10,200,000 characters"),
        (["w1"], ["same"], None, "second text"),
        (["w1"], ["same"], [b"w2"], "not a text"),
        (["w1"], ["topic", "kind"], None, "one task"),
    ],
)
def test_bad_input_is_refused_by_name_and_the_engine_goes_on(engine, alone, texts, tasks, pairs, message):
    with pytest.raises(DataError, match=message):
        engine.predict(texts, tasks, pairs)
    assert ask(engine, REQUESTS[:1]) == alone[:1]


def test_a_check_says_what_predict_would_say_and_runs_nothing(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "forward", None)
    engine.check(["w1", "w2"], ["topic", "score"])
    for texts, tasks, pairs in ((["w1"], ["topc"], None), ([3], ["topic"], None), (["w1"], ["same"], [None])):
        with pytest.raises(DataError):
            engine.check(texts, tasks, pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "bit"}, "bits"),
        ({"token_budget": 0}, "token_budget"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine.from_pretrained(folder, **options)


def test_a_head_that_nobody_reads_is_refused(base_folder):
    model = MultiTaskModel.from_base(
        AutoModelForMaskedLM.from_pretrained(base_folder),
        [Task("x", hfadapt.OwnHead())],
        "lora",
    )
    with pytest.raises(TaskError, match="cannot read its answer"):
        Engine(model, tiny_tokenizer())


def test_padded_lengths():
    assert [padded_length(n, 512) for n in (1, 16, 17, 33, 65, 511)] == [16, 16, 32, 48, 96, 512]
    assert padded_length(50, 64) == 64 and padded_length(60, 62) == 62
    assert padded_length(513, 10**9) == 2 * LENGTHS[-1]


def test_the_fastest_product_is_measured_once_and_named(model, further, caplog):
    with caplog.at_level("WARNING", "hfadapt.runtime.packing"):
        engine = Engine(copy.deepcopy(model), tiny_tokenizer(), dtype="fastest")
        engine.add(further)
    assert engine.dtype in ("float32", "bfloat16", "int8", "int8_dynamic") and caplog.text.count("is the choice") == 1
