"""Tensors on another device than the input's are named before anything runs, in every op.

The other device is a card that torch pretends to have: its tensors hold no numbers, and say that they are there.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hfadapt_kernels as hk
from hfadapt_kernels import backend

WIDE, RANK, TASKS = 8, 4, 2
ROWS = hk.TaskBatch.from_ids([0, 1, -1], TASKS)


def make(*shape):
    return torch.randn(shape)


def each(*shape):
    return [make(*shape) for _ in range(TASKS)]


def norm():
    lists = {"down": each(RANK, WIDE), "up": each(WIDE, RANK), "down_bias": each(RANK), "up_bias": each(WIDE)}
    lists["scale"] = each(1)
    return hk.parallel_adapter_norm, {
        "x": make(3, 5, WIDE), "h": make(3, 5, WIDE), **lists, "batch": ROWS, "residual": make(3, 5, WIDE),
        "norm": "layer", "norm_weight": make(WIDE), "norm_bias": make(WIDE),
    }  # fmt: skip


def lora():
    weights = {"a": each(RANK, WIDE), "b": each(6, RANK), "scale": each(1)}
    return hk.grouped_lora, {"x": make(3, 5, WIDE), **weights, "batch": ROWS, "y": make(3, 5, 6)}


def linear():
    weights = {"weight": make(6, WIDE), "bias": make(6), "a": each(RANK, WIDE), "b": each(6, RANK)}
    return hk.lora_linear, {"x": make(3, 5, WIDE), **weights, "scale": each(1), "batch": ROWS}


def prefix():
    heads = {name: make(3, 2, 5, 4) for name in ("query", "key", "value")}
    prefixes = {"prefix_key": each(2, 3, 4), "prefix_value": each(2, 3, 4)}
    return hk.prefix_attention, {
        **heads,
        **prefixes,
        "batch": ROWS,
        "mask": torch.ones(3, 1, 5, 5).bool(),
        "position_bias": make(1, 2, 5, 5),
    }


def fusion():
    lists = {"hidden": each(3, 5, RANK), "up": each(WIDE, RANK)}
    weights = {f"{name}_weight": make(WIDE, WIDE) for name in ("query", "key", "value")}
    biases = {"up_bias": each(WIDE), "query_bias": make(WIDE), "key_bias": make(WIDE)}
    return hk.adapter_fusion, {"query": make(3, 5, WIDE), **lists, "scale": [1.0] * TASKS, **weights, **biases}


def pal():
    shapes = {"encoder": (4, WIDE), "decoder": (WIDE, 4), "query": (4, 4), "key": (4, 4), "value": (4, 4)}
    return hk.pal_attention, {
        "x": make(3, 5, WIDE), **{name: each(*shape) for name, shape in shapes.items()}, "batch": ROWS, "num_heads": 2,
        "encoder_bias": each(4), "decoder_bias": each(WIDE),
    }  # fmt: skip


def frozen():
    return hk.frozen_linear, {
        "x": make(3, 5, WIDE),
        "packed": hk.PackedLinear(make(6, WIDE), "float32"),
        "bias": make(6),
    }


CALLS = (norm, lora, linear, prefix, fusion, pal, frozen)


def moved(tensor):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def elsewhere(given):
    """The call's arguments with one tensor on another device, for each; of a list, the last task's."""
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            yield name, given | {name: moved(value)}
        elif isinstance(value, list) and isinstance(value[-1], torch.Tensor):
            yield f"{name}[{TASKS - 1}]", given | {name: [*value[:-1], moved(value[-1])]}
    if "batch" in given:
        yield "ids", given | {"batch": hk.TaskBatch(moved(ROWS.ids), TASKS)}
    yield "seed", given | {"dropout": 0.5, "training": True, "seed": moved(torch.zeros(1, dtype=torch.int64))}


CASES = [
    pytest.param(op, given, id=f"{op.__name__}-{name}")
    for call in CALLS
    for op, plain in [call()]
    for name, given in elsewhere(plain)
    if name != "seed" or op is not hk.frozen_linear
]


@pytest.mark.parametrize(("op", "given"), CASES)
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_a_tensor_elsewhere_is_named_before_anything_runs(op, given, chosen, monkeypatch):
    ran = []
    for one in backend._OPS.values():
        monkeypatch.setattr(one, "run", lambda *arguments: ran.append(arguments))
    with hk.use_backend(chosen), pytest.raises(hk.ShapeError) as caught:
        op(**given)
    text = str(caught.value)
    assert text.startswith(f"{op.__name__}: ") and "expected " in text and "got " in text, text
    assert "on cuda:0" in text and "on cpu" in text, text
    assert ".to('c" in text or "device='c" in text, text
    assert not ran
