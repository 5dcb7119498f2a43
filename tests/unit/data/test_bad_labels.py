"""Labels that no head can learn from are refused before training, with task, split and row."""

from __future__ import annotations

import pytest

from hfadapt import Classification, MultiLabel, OwnHead, Regression, Span, Task, TaskMixture, TokenClassification
from hfadapt.errors import DataError

NAN = float("nan")
GOOD_SPAN = {"text": ["a"], "answer_start": [0]}
CASES = {
    "class, NaN": (Classification(2), "a b", 1, NAN),
    "class, too high": (Classification(2), "a b", 1, 2),
    "labels, NaN": (MultiLabel(2), "a b", [0, 1], [NAN, 1]),
    "labels, too high": (MultiLabel(2), "a b", [0, 1], [0, 7]),
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
