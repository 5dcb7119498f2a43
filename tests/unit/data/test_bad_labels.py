"""Labels that no head can learn from are refused before training, with task, split and row."""

from __future__ import annotations

import pytest

from hfadapt import Classification, MultiLabel, OwnHead, Regression, Span, Task, TaskMixture, TokenClassification
from hfadapt.errors import DataError
from hfadapt.testing.toy import tiny_tokenizer

NAN = float("nan")
GOOD_SPAN = {"text": ["a"], "answer_start": [0]}
CASES = {
    "class, NaN": (Classification(2), "a b", 1, NAN),
    "class, too high": (Classification(2), "a b", 1, 2),
    "labels, NaN": (MultiLabel(2), "a b", [0.0, 1.0], [NAN, 1.0]),
    "labels, too high": (MultiLabel(2), "a b", [0.0, 1.0], [0.0, 7.0]),
    "number, NaN": (Regression(), "a b", 1.0, NAN),
    "number, out of bounds": (Regression(0, 1), "a b", 1.0, 1.5),
    "words, NaN": (TokenClassification(2), ["a", "b"], [0, 1], [0, NAN]),
    "words, too high": (TokenClassification(2), ["a", "b"], [0, 1], [0, 2]),
    "answer, none given": (Span(), "a b", GOOD_SPAN, NAN),
    "answer, before the text": (Span(), "a b", GOOD_SPAN, {"text": ["a"], "answer_start": [-4]}),
    "answer, behind the text": (Span(), "a b", GOOD_SPAN, {"text": ["a"], "answer_start": [99]}),
    "own head, NaN": (OwnHead(), "a b", 1, NAN),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_label_is_named_with_its_row(case):
    head, text, good, bad = CASES[case]
    rows = [{"text": text, "label": good}] * 2 + [{"text": text, "label": bad}]
    if isinstance(head, Span):
        rows = [{**row, "text_pair": "a b c"} for row in rows]
        # the columns of a data set have one type
        rows = rows if isinstance(bad, dict) else [{**row, "label": NAN} for row in rows]
    with pytest.raises(DataError, match=r"task 'bad', train, row [02]"):
        TaskMixture([Task("bad", head, data=rows)])


@pytest.mark.parametrize("row", [[0], [1], [0, 1], [1, 0]], ids=str)
def test_labels_that_read_two_ways_are_refused_with_both_readings(row):
    with pytest.raises(DataError, match=r"row 0: .*two ways.*as indices.*as zeros and ones.*try: "):
        MultiLabel(2).check_labels([row], "here")
    with pytest.raises(DataError, match=r"row 1.*two ways"):
        MultiLabel(2).check_labels([[], row], "here")


def test_one_label_alone_reads_two_ways_only_as_zero():
    with pytest.raises(DataError, match="two ways"):
        MultiLabel(1).check_labels([[0]], "here")
    assert MultiLabel(1).check_labels([[0], [1], [0]], "here")[0].tolist() == [0.0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.0, 1.0]], [0, 1]),
        ([[True, False]], [1, 0]),
        ([[0, 1], [1, 1]], [0, 1]),
        ([[1, 0], [0, 0]], [1, 0]),
        ([["b"], ["a", "b"]], [0, 1]),
        ([[]], [0, 0]),
    ],
    ids=str,
)
def test_rows_that_read_one_way_are_read(rows, expected):
    assert MultiLabel(2).check_labels(rows, "here", ("a", "b"))[0].tolist() == expected
    wide = [row * 2 if len(row) == 2 and not isinstance(row[0], str) else row for row in rows]
    assert MultiLabel(4).check_labels(wide, "here", ("a", "b", "c", "d"))[0][:2].tolist() == expected


def test_zeros_and_ones_are_not_mixed_with_lists_of_labels():
    with pytest.raises(DataError, match=r"row 1: a row of labels among zeros and ones"):
        MultiLabel(2).check_labels([[1, 1], [0]], "here")


def test_three_labels_read_one_way():
    read = MultiLabel(3).check_labels([[0], [0, 1], [1, 0, 1]], "here")
    assert [row.tolist() for row in read] == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_a_validation_split_without_labels_does_not_pull_the_loss_down():
    rows = [{"text": "a b", "label": i % 2} for i in range(4)]
    hidden = [{"text": "a b", "label": -1}] * 4
    labelled = Task("labelled", Classification(2), data={"train": rows, "validation": rows[:3]})
    blind = Task("blind", Classification(2), data={"train": rows, "validation": hidden})
    missing = Task("missing", Classification(2), data={"train": rows, "validation": [{"text": "a"}] * 2})
    mix = TaskMixture([labelled, blind, missing], tiny_tokenizer())
    assert len(mix.eval) == 3 and {mix.eval[i]["task_ids"] for i in range(3)} == {0}
    assert len(mix.dataset("validation")) == 9
    assert TaskMixture([blind], tiny_tokenizer()).eval is None
