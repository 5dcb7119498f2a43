"""Threads that share a tokenizer each get their texts cut where they asked for."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hfadapt import Classification, Span, Task
from hfadapt.data import tokenizer as tokenizers_of
from hfadapt.data.columns import Columns
from hfadapt.data.tokenizer import sole_use
from hfadapt.data.tokens import tokenize
from hfadapt.testing.toy import tiny_tokenizer

WORDS = " ".join(f"w{i}" for i in range(30))
READERS = [
    (Task("short", Classification(2), max_length=8), Columns("short", [WORDS] * 3, None, None)),
    (Task("long", Classification(2), max_length=16), Columns("long", [WORDS] * 3, None, None)),
    (Task("span", Span(doc_stride=2), max_length=12), Columns("span", ["w1 w2"] * 2, [WORDS] * 2, None)),
]


@pytest.fixture
def busy():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy")
def test_threads_that_cut_texts_otherwise_do_not_disturb_one_another():
    tokenizer = tiny_tokenizer()

    def lengths(reader):
        return tokenize(*reader, tokenizer).lengths.tolist()

    want = [lengths(reader) for reader in READERS]
    assert want[:2] == [[8] * 3, [16] * 3]

    def again(number):
        return all(lengths(READERS[number]) == want[number] for _ in range(200))

    with ThreadPoolExecutor(len(READERS)) as pool:
        assert all(pool.map(again, range(len(READERS))))


def test_a_lock_is_a_tokenizers_own_and_goes_with_it():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    assert sole_use(one) is sole_use(one) is not sole_use(other)
    held = len(tokenizers_of._locks)
    del other
    gc.collect()
    assert len(tokenizers_of._locks) < held
