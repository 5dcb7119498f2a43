"""Arguments that are none: every op says so itself, before it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfadapt_kernels import (
    TaskBatch,
    adapter_fusion,
    frozen_linear,
    grouped_lora,
    lora_linear,
    pal_attention,
    parallel_adapter_norm,
    prefix_attention,
)
from hfadapt_kernels.errors import KernelError, ShapeError


def two(*shape: int) -> list[torch.Tensor]:
    return [torch.randn(*shape), torch.randn(*shape)]


def good() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each op with arguments that it takes."""
    batch = TaskBatch.from_ids([0, 1], 2)
    x = torch.randn(2, 3, 8)
    lora = {"x": x, "a": two(4, 8), "b": two(8, 4), "scale": 1.0, "batch": batch}
    heads = torch.randn(2, 2, 3, 4)
    small = two(4, 4)
    weight = torch.randn(8, 8)
    return {
        "grouped_lora": (grouped_lora, lora),
        "lora_linear": (lora_linear, {**lora, "weight": weight, "bias": None}),
        "parallel_adapter_norm": (
            parallel_adapter_norm,
            {"x": x, "h": x, "down": two(4, 8), "up": two(8, 4), "batch": batch, "scale": 1.0},
        ),
        "pal_attention": (
            pal_attention,
            {"x": x, "encoder": two(4, 8), "decoder": two(8, 4), "query": small, "key": small, "value": small}
            | {"batch": batch, "num_heads": 2},
        ),
        "prefix_attention": (
            prefix_attention,
            {"query": heads, "key": heads, "value": heads, "prefix_key": two(2, 5, 4), "prefix_value": two(2, 5, 4)}
            | {"batch": batch, "scaling": 0.5},
        ),
        "adapter_fusion": (
            adapter_fusion,
            {"query": x, "hidden": two(2, 3, 4), "up": two(8, 4), "up_bias": None, "scale": [1.0, 1.0]}
            | {"query_weight": weight, "query_bias": None, "key_weight": weight, "key_bias": None}
            | {"value_weight": weight, "temperature": 1.0},
        ),
    }


BAD = {
    "a string": "x",
    "None": None,
    "a number": 3.0,
    "a sparse tensor": torch.randn(2, 8).to_sparse(),
    "a meta tensor": torch.empty(2, 3, 8, device="meta"),
    "a complex tensor": torch.zeros(2, 3, 8, dtype=torch.complex64),
    "whole numbers": torch.zeros(2, 3, 8, dtype=torch.long),
}
NO_IDS = [
    *("ab", None, 3, [0.0, 1.0], [0, 1.5], [None, 0], [[0], [1]]),
    *(torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.zeros(2, 1, dtype=torch.long)),
    *(torch.zeros(2, dtype=torch.complex64), torch.zeros((), dtype=torch.long)),
    *(torch.zeros(2, dtype=torch.long).to_sparse(), torch.zeros(2, dtype=torch.long, device="meta")),
]
OPTIONAL = {"bias", "up_bias", "query_bias", "key_bias", "scale", "scaling", "num_heads", "temperature"}


@pytest.mark.parametrize("op", good())
def test_what_is_no_tensor_is_refused_by_the_op_itself(op: str) -> None:
    function, arguments = good()[op]
    function(**arguments)
    for name in set(arguments) - OPTIONAL:
        for what, bad in BAD.items():
            for value in (bad, [bad, bad]):
                with pytest.raises(ShapeError, match=name):
                    function(**{**arguments, name: value})
                    pytest.fail(f"{name} took {what}")


@pytest.mark.parametrize("op", good())
@pytest.mark.parametrize("dropout", [1.0, -0.1, float("nan"), "half", None, True], ids=str)
def test_what_is_no_probability_is_refused(op: str, dropout: Any) -> None:
    function, arguments = good()[op]
    with pytest.raises(ShapeError, match="dropout is not a probability"):
        function(**arguments, dropout=dropout, training=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "one", None], ids=str)
@pytest.mark.parametrize(
    ("op", "name"),
    [
        *((op, "scale") for op in ("grouped_lora", "lora_linear", "parallel_adapter_norm", "adapter_fusion")),
        ("prefix_attention", "scaling"),
        ("adapter_fusion", "temperature"),
        ("parallel_adapter_norm", "eps"),
    ],
)
def test_what_is_no_finite_number_is_refused(op: str, name: str, bad: Any) -> None:
    function, arguments = good()[op]
    if (name, bad) == ("scaling", None):
        return  # the default
    values = [[1.0, bad]] if op == "adapter_fusion" and name == "scale" else [bad]
    if name == "scale" and op != "adapter_fusion":
        values.append([1.0, bad])
    for value in values:
        with pytest.raises(KernelError, match=name):
            function(**{**arguments, name: value})


@pytest.mark.parametrize("ids", NO_IDS, ids=repr)
def test_ids_that_are_none_are_refused(ids: Any) -> None:
    with pytest.raises(ShapeError, match="ids"):
        TaskBatch.from_ids(ids, 2)


@pytest.mark.parametrize("ids", [[0, 2], [-2, 0], torch.tensor([0, 5])], ids=str)
def test_ids_out_of_range_are_refused(ids: Any) -> None:
    with pytest.raises(KernelError, match="out of range"):
        TaskBatch.from_ids(ids, 2)


def test_a_frozen_linear_asks_for_its_packed_weight() -> None:
    for packed in (torch.randn(8, 8), None, "w"):
        with pytest.raises(ShapeError, match="packed"):
            frozen_linear(torch.randn(2, 8), packed)
