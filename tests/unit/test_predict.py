"""Predictions of every kind of head for plain texts: what a reader sees is what the head decoded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hfadapt import Classification, MultiTaskModel, OwnHead, Span, Task, TokenClassification
from hfadapt.errors import DataError
from hfadapt.inference.predict import Predictor
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, tiny_tokenizer, toy_model

WORDS = [f"w{i}" for i in range(40)]
CONTEXT = "  ".join(WORDS)


class Oracle(nn.Module):
    """Answers from the tokens alone: ``start`` and ``end`` of a span, or a class for each word in ``classes``."""

    def __init__(self, task, tokenizer, start="", end="", classes=()):
        super().__init__()
        self.tasks = (task,)
        self.anchor = nn.Parameter(torch.zeros(()))  # says which device the batches go to
        id_of = tokenizer.convert_tokens_to_ids
        self.ends = [id_of(start), id_of(end)]
        self.classes = {id_of(word): index for word, index in dict(classes).items()}

    def forward(self, input_ids, attention_mask, task_ids, **_):
        if self.classes:
            wanted = input_ids.clone().apply_(lambda i: self.classes.get(i, 0))
            logits = nn.functional.one_hot(wanted, self.tasks[0].head.num_labels)
        else:
            logits = torch.stack([input_ids == end for end in self.ends], dim=-1)
        return SimpleNamespace(logits=10.0 * logits.flatten(1))


def predictor(head, side="right", max_length=16, names=None, **answers):
    tokenizer = tiny_tokenizer(side)
    task = Task("it", head, max_length=max_length, label_names=names)
    return Predictor(Oracle(task, tokenizer, **answers), tokenizer)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_span_is_the_contexts_own_characters_also_in_a_far_window(side, batch_size):
    found = predictor(Span(doc_stride=4), side, start="w30", end="w32").predict(
        ["w90 w91", "w92"], ["it", "it"], [CONTEXT, "w31 w30 w7  w32 w1"], batch_size=batch_size
    )
    assert [one.label for one in found] == ["w30  w31  w32", "w30 w7  w32"]
    assert [one.text_pair for one in found] == [CONTEXT, "w31 w30 w7  w32 w1"]


def test_no_answer_is_an_empty_text():
    head = Span(version_2_with_negative=True)
    (found,) = predictor(head, start="[CLS]", end="[CLS]").predict(["w90"], ["it"], ["w1 w2"])
    assert found.label == ""


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_word_has_its_label(side):
    tagger = predictor(TokenClassification(3), side, names=("O", "B", "I"), classes={"w1": 1, "w3": 2})
    found = tagger.predict(["w1  w2 w3", "w3"], ["it", "it"])
    assert [one.label for one in found] == [[("w1", "B"), ("w2", "O"), ("w3", "I")], [("w3", "I")]]


def test_rows_of_every_kind_share_a_forward_and_answer_as_alone():
    tasks = every_toy_task()
    many = Predictor(toy_model(tasks), tiny_tokenizer())
    names = [task.name for task in tasks]
    texts, pairs = ["w1 w2"] * len(names), [None if name == "tags" else "w5 w6 w7" for name in names]
    together = many.predict(texts, names, pairs)
    for name, pair, one in zip(names, pairs, together, strict=True):
        (alone,) = many.predict(["w1 w2"], [name], [pair])
        label = pytest.approx(one.label) if isinstance(one.label, float) else one.label
        assert (alone.task, alone.label) == (name, label)


def test_what_cannot_be_answered_says_so():
    with pytest.raises(DataError, match="second text"):
        predictor(Span()).predict(["w1"], ["it"])
    with pytest.raises(DataError, match="predict cannot read its answer"):
        predictor(OwnHead()).predict(["w1"], ["it"])
    with pytest.raises(DataError, match="reads one text"):
        predictor(TokenClassification(3)).predict(["w1"], ["it"], ["w2"])
    tokenizer = tiny_tokenizer()
    joint = Task("nli", Classification(2), columns={"text_pair": "hypothesis"})
    with pytest.raises(DataError, match="second text"):
        Predictor(Oracle(joint, tokenizer), tokenizer).predict(["w1"], ["nli"])


def test_all_tasks_answer_for_one_text_and_its_pair():
    tasks = every_toy_task()
    many = Predictor(toy_model(tasks), tiny_tokenizer())
    found = many.predict_all("w1 w2", pair="w5 w6 w7")
    assert [one.task for one in found] == [task.name for task in tasks]
    for one in found:  # who answers word by word reads the first text alone
        pair = None if one.task == "tags" else "w5 w6 w7"
        assert one.text_pair == pair
        (alone,) = many.predict("w1 w2", one.task, None if pair is None else [pair])
        assert alone.label == (pytest.approx(one.label) if isinstance(one.label, float) else one.label)
    (named,) = many.predict_all("w1 w2", tasks="tags", pair="w5")
    assert named.label == next(one.label for one in found if one.task == "tags")
    with pytest.raises(DataError, match="second text"):
        many.predict_all("w1 w2")


@pytest.mark.parametrize("kind", ["classes", "numbers", "several", "tokens"])
def test_the_bases_own_head_answers_texts_and_pairs(kind):
    """Each row through its task's adapter, as the model itself answers it."""
    head, count = ("token-classification", 3) if kind == "tokens" else ("sequence-classification", 3)
    base = tiny_model("bert", head, num_labels=1 if kind == "numbers" else count)
    if kind == "several":
        base.config.problem_type = "multi_label_classification"
    names = None if kind in ("numbers", "several") else ("x", "y", "z")
    tasks = [Task(name, OwnHead(), label_names=names) for name in ("a", "b")]
    model = MultiTaskModel.from_base(base, tasks, "lora").eval()
    randomize(model.base)
    tokenizer = tiny_tokenizer()
    predictor = Predictor(model, tokenizer)
    pairs = None if kind == "tokens" else ["w7 w8", None, "w9"]
    texts, of = ["w1 w2", "w3 w4 w5", "w6"], ["b", "a", "b"]
    for text, task, pair, found in zip(
        texts, of, pairs or [None] * 3, predictor.predict(texts, of, pairs), strict=True
    ):
        inputs = tokenizer(text, pair, return_tensors="pt")
        logits = model.base(**inputs, task_ids=task).logits[0].detach()
        if kind == "numbers":
            assert found.label == pytest.approx(float(logits[0]), abs=1e-5)
        elif kind == "several":
            assert found.label == [i for i, value in enumerate(logits.tolist()) if value > 0]
        elif kind == "classes":
            assert found.label == names[logits.argmax()]
            assert found.score == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
        else:
            assert found.label == [(w, names[i]) for w, i in zip(text.split(), logits[1:-1].argmax(1), strict=True)]
    everything = predictor.predict_all("w1 w2", pair=None if pairs is None else "w7 w8")
    assert [one.task for one in everything] == ["a", "b"]


def test_what_the_base_writes_for_a_prompt_and_its_pair():
    tasks = [Task(name, OwnHead(labels="text")) for name in ("a", "b")]
    model = MultiTaskModel.from_base(tiny_model("t5", "seq2seq-lm"), tasks, "lora").eval()
    randomize(model.base)
    tokenizer = tiny_tokenizer()
    predictor = Predictor(model, tokenizer, max_new_tokens=4)
    for found in predictor.predict_all("w1 w2", pair="w5"):
        inputs = {
            key: value for key, value in tokenizer("w1 w2", "w5", return_tensors="pt").items() if "type" not in key
        }
        made = model.generate(**inputs, task_ids=found.task, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert found.label == tokenizer.decode(made[0, 1:], skip_special_tokens=True)
