"""The shapes that signatures of the public ops say are those that calls have."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import Tensor

import hfadapt_kernels as hk
from hfadapt_kernels import native
from tests import shapes
from tests.kernels.fuzz import OPS, Draw

# of the tests' own requirements; `make oldest` goes without them
pytest.importorskip("beartype")
pytest.importorskip("jaxtyping")
FUNCTIONS = [value for name in hk.__all__ if inspect.isfunction(value := getattr(hk, name))]
PUBLIC = [function for function in FUNCTIONS if "Tensor" in str(inspect.signature(function))]
BACKENDS = ["reference", *(["cpu"] if native.available() else [])]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_no_tensor_of_a_public_function_is_without_a_shape(function):
    said = {name: re.sub(r"Callable\[.*?\]", "", hint) for name, hint in inspect.get_annotations(function).items()}
    without = [name for name, hint in said.items() if re.search(r"(?<!\[)\bTensor", hint)]
    assert not without


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", OPS, ids=lambda make: make.__name__)
def test_random_calls_have_the_shapes_of_the_signature(make, backend):
    with shapes.everywhere(*PUBLIC), hk.use_backend(backend):
        for number in range(12):
            call = make(Draw(f"shapes {number}"))
            call.fn({name: tensor.float() for name, tensor in call.inputs.items()})


def test_calls_and_results_of_other_shapes_are_found(monkeypatch):
    from jaxtyping import Float, TypeCheckError

    def transposed(x: Float[Tensor, "B D"], y: Float[Tensor, "B D"]) -> Float[Tensor, "D B"]:
        return x + y

    square, flat = torch.ones(2, 2), torch.ones(2, 3)
    transposed = shapes.checked(transposed, Float=Float)
    assert transposed(square, square).shape == (2, 2)
    with pytest.raises(TypeCheckError, match="return value"):
        transposed(flat, flat)
    with pytest.raises(TypeCheckError, match="parameters"):
        transposed(flat, flat.T)
