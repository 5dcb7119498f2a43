"""Every built-in delta is called with the shapes that ``Delta.forward`` says, and returns the shape that it says."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import AttachError
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests import shapes
from tests.conformance.small import SMALL

# of the tests' own requirements; `make oldest` goes without them
pytest.importorskip("beartype")
pytest.importorskip("jaxtyping")
METHODS = [name for name in sorted(plugins.methods()) if name != "fusion"]  # it has no delta
NAMES = ["a", "b"]


def deltas(model):
    return [module for module in model.modules() if isinstance(module, hfadapt.Delta)]


def held(kind, seen):
    """``forward`` of a class of deltas, held to the signature of ``Delta.forward``."""
    inner = kind.forward

    def call(self, value, source, rows, **norm):
        seen.append(tuple(value.shape))
        return inner(self, value, source, rows, **norm)

    call.__annotations__ = dict(hfadapt.Delta.forward.__annotations__)
    return shapes.checked(call, Rows=Any)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "opt"])
@pytest.mark.parametrize("method", METHODS)
def test_deltas_keep_the_shapes_of_the_signature(method, model_type, monkeypatch):
    model = tiny_model(model_type)
    try:
        hfadapt.attach(model, SMALL.get(method, method), names=NAMES, verify=False)
    except AttachError as error:
        pytest.skip(str(error).partition(";")[0])  # a pooler where there is none, cross-attention in an encoder
    seen: list[tuple[int, ...]] = []
    kinds = {type(delta) for delta in deltas(model)}
    ordinary = [kind for kind in kinds if "value" in inspect.signature(kind.forward).parameters]
    for kind in ordinary:  # deltas of attention take the call of it
        monkeypatch.setattr(kind, "forward", held(kind, seen))
    with torch.no_grad():
        model(**tiny_inputs(model_type, batch=3), task_ids=["a", "b", "a"])
    assert bool(seen) == bool(ordinary)


def test_a_delta_of_another_shape_is_found():
    from jaxtyping import TypeCheckError

    class Wider(hfadapt.Delta):
        def forward(self, value, source, rows):
            return torch.cat([value, value], -1)

    forward = held(Wider, [])
    with pytest.raises(TypeCheckError, match="return value"):
        forward(None, torch.ones(2, 3, 4), torch.ones(2, 3, 4), None)
