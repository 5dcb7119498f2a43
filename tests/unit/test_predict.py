"""Predictions of every kind of head for plain texts: what a reader sees is what the head decoded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hfadapt import Classification, OwnHead, Span, Task, TokenClassification
from hfadapt.errors import DataError
from hfadapt.inference.predict import Predictor
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
