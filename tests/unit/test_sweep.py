"""What the sweep over every model type tries once more."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep" / "sweep.py"
KNOWN = {"stock": "runs", "methods": {"lora": {"verdict": "ok"}, "pal": {"verdict": "refused", "reason": "why"}}}
METHODS = ("lora", "pal", "prefix")


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("known", "again", "named", "tried"),
    [
        (KNOWN, False, False, ["prefix"]),
        (KNOWN, True, False, ["pal", "prefix"]),
        (KNOWN, True, True, ["pal", "prefix"]),
        (KNOWN, False, True, ["lora", "pal", "prefix"]),
        ({}, True, False, ["lora", "pal", "prefix"]),
        ({"stock": "takes too long", "reason": "slow"}, False, False, []),
        ({"stock": "takes too long", "reason": "slow"}, True, False, ["lora", "pal", "prefix"]),
    ],
)
def test_again_tries_what_is_not_ok_and_keeps_the_rest(sweep, known, again, named, tried):
    assert sweep.to_try(known, METHODS, again=again, all_of_them=named) == tried
