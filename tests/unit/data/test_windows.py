"""Long contexts in overlapping windows: every answer is found in one of them, and one answer an example is scored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hfadapt import Span, Task, TaskMixture
from hfadapt.errors import DataError, TaskError
from hfadapt.multitask.heads.span import Window
from hfadapt.testing.toy import tiny_tokenizer, toy_model

WORDS = [f"w{i}" for i in range(40)]
CONTEXT = " ".join(WORDS)


def row(first, last):
    """A question about the words ``first`` to ``last`` of the context; no answer for -1."""
    text = " ".join(WORDS[first : last + 1])
    start = len(" ".join(WORDS[:first])) + (first > 0)
    answer = {"text": [text], "answer_start": [start]} if first >= 0 else {"text": [], "answer_start": []}
    return {"text": "w90 w91", "text_pair": CONTEXT, "label": answer}


ROWS = [row(0, 1), row(17, 19), row(39, 39), row(-1, -1)]


def mixture(stride=4, rows=ROWS, max_length=16, side="right", version_2_with_negative=True, **head):
    head = Span(doc_stride=stride, version_2_with_negative=version_2_with_negative, **head)
    task = Task("qa", head, data={"train": rows, "validation": rows}, max_length=max_length)
    return TaskMixture([task], tiny_tokenizer(side))


def windows(mix):
    data = mix.dataset("validation")
    return [(data[i]["input_ids"], Window.of(data[i]["labels"])) for i in range(len(data))]


def test_windows_cover_the_context_and_share_doc_stride_tokens():
    mix = mixture()
    vocabulary = tiny_tokenizer().convert_ids_to_tokens
    seen = {}
    for ids, window in windows(mix):
        words = vocabulary(ids[window.first : window.last + 1].tolist())
        assert words == WORDS[window.offset : window.offset + len(words)]
        seen.setdefault(window.example, []).append((window.offset, window.offset + len(words)))
    assert len(seen) == len(ROWS)
    for spans in seen.values():
        assert spans[0][0] == 0 and spans[-1][1] == len(WORDS)
        assert all(before[1] - after[0] == 4 for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_point_at_the_answer_or_at_the_first_token(side):
    mix = mixture(side=side)
    data = mix.dataset("validation")
    batch = mix.collator([data[i] for i in range(len(data))])
    tokens = tiny_tokenizer().convert_ids_to_tokens
    found = {}
    for ids, label in zip(batch["input_ids"], batch["labels"], strict=True):
        window = Window.of(label)
        words = tokens(ids.tolist())
        assert words[window.cls] == "[CLS]"
        if window.start == window.cls:
            assert window.end == window.cls
        else:
            found.setdefault(window.example, words[window.start : window.end + 1])
    assert found == {0: ["w0", "w1"], 1: ["w17", "w18", "w19"], 2: ["w39"]}


def perfect_logits(mix, ids, label):
    """Logits that are sure of the answer of one window, and of no answer where it has none."""
    window = Window.of(label)
    logits = np.full((ids.shape[0], 2), -5.0)
    sure = 5.0 if window.start > window.cls else 3.0
    logits[window.start, 0] = logits[window.end, 1] = sure
    return logits.reshape(-1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_one_answer_an_example_is_scored_over_its_windows(side):
    mix = mixture(side=side)
    data = mix.dataset("validation")
    batch = mix.collator([data[i] for i in range(len(data))])
    labels = batch["labels"].numpy()
    logits = np.stack([perfect_logits(mix, *pair) for pair in zip(batch["input_ids"], labels, strict=True)])
    head = mix.tasks[0].head
    predictions, references = head.decode(logits, labels)
    assert references.tolist() == [[0, 1], [17, 19], [39, 39], [-1, -1]]
    assert predictions.tolist() == references.tolist()


# two windows of one example: the first holds no answer, the second one at the context's tokens 3 and 4
TWO = np.array([[0, 0, 0, 3, 6, 0, 0, 1], [4, 5, 0, 3, 6, 0, 2, 1]], np.float32)


def two_windows(first_null, second_null):
    """Logits of two windows: the best answer has score 4, ``no answer`` the given ones."""
    logits = np.full((2, 8, 2), -9.0)
    logits[0, 0], logits[1, 0] = first_null / 2, second_null / 2
    logits[0, 5], logits[1, 4, 0], logits[1, 5, 1] = 1.0, 2.0, 2.0
    return logits.reshape(2, -1)


def test_the_best_window_wins_and_no_answer_needs_every_window():
    head = Span(doc_stride=2, version_2_with_negative=True)
    predictions, references = head.decode(two_windows(8.0, -6.0), TWO)
    assert references.tolist() == [[3, 4]] and predictions.tolist() == [[3, 4]]
    assert head.decode(two_windows(8.0, 6.0), TWO)[0].tolist() == [[-1, -1]]


@pytest.mark.parametrize(("threshold", "none"), [(-2.5, True), (-1.5, False), (0.0, False)])
def test_no_answer_must_lead_by_the_threshold(threshold, none):
    head = Span(version_2_with_negative=True, null_score_diff_threshold=threshold)
    predictions, _ = head.decode(two_windows(8.0, 2.0), TWO)  # 2 below the answer's score
    assert predictions.tolist() == ([[-1, -1]] if none else [[3, 4]])


def test_where_every_question_has_an_answer_no_answer_is_never_predicted():
    assert Span(doc_stride=2).decode(two_windows(90.0, 90.0), TWO)[0].tolist() == [[3, 4]]


def test_answers_are_looked_for_in_the_context_only():
    logits = two_windows(-9.0, -9.0).reshape(2, 8, 2)
    logits[1, 1], logits[1, 7] = 50.0, 50.0  # a token of the question, and padding
    assert Span().decode(logits.reshape(2, -1), TWO)[0].tolist() == [[3, 4]]


def test_a_question_without_an_answer_is_refused_where_all_have_one():
    with pytest.raises(
        DataError, match=r"train, row 3: a question without an answer[\s\S]*version_2_with_negative=True"
    ):
        mixture(version_2_with_negative=False)
    with pytest.raises(TaskError, match=r"null_score_diff_threshold[\s\S]*version_2_with_negative=True"):
        Span(null_score_diff_threshold=1.0)
    with pytest.raises(TaskError, match="null_score_diff_threshold"):
        Span(version_2_with_negative=True, null_score_diff_threshold=float("nan"))


def test_without_a_stride_long_contexts_are_cut_and_a_lost_answer_counts_as_missed():
    mix = mixture(stride=None)
    found = windows(mix)
    assert len(found) == len(ROWS)
    assert [(w.start - w.first, w.end - w.first) for _, w in found[:1]] == [(0, 1)]
    assert all((w.start, w.end) == (w.cls, w.cls) == (0, 0) for _, w in found[1:])
    data = mix.dataset("validation")
    labels = np.stack([data[i]["labels"] for i in range(len(data))])
    predictions, references = mix.tasks[0].head.decode(np.zeros((len(ROWS), 32)), labels)
    assert references[[0, 3]].tolist() == [[0, 1], [-1, -1]]
    assert not (predictions[1:3] == references[1:3]).any() and (references[1:3] == -2).all()


def test_windows_count_as_rows_of_training_and_train():
    mix = mixture()
    assert mix.schedule.sizes == (len(windows(mix)),) and len(mix.eval) == len(windows(mix)) > len(ROWS)
    model = toy_model(mix.tasks)
    batch = mix.collator([mix.train[i] for i in range(4)])
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_a_mixture_that_gets_its_tokenizer_later_counts_windows_then():
    head = Span(doc_stride=4, version_2_with_negative=True)
    task = Task("qa", head, data={"train": ROWS, "validation": ROWS}, max_length=16)
    mix = TaskMixture([task])
    held = mix.eval
    assert len(held) == len(ROWS)
    mix.bind(tiny_tokenizer())
    assert len(held) == len(windows(mix)) == mix.schedule.sizes[0]


def test_a_stride_that_leaves_no_room_is_refused():
    with pytest.raises(DataError, match=r"too little room[\s\S]*doc_stride below 11"):
        mixture(stride=11)
    with pytest.raises(TaskError, match="bad doc_stride"):
        Span(doc_stride=-1)
