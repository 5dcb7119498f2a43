"""How an op finds its backend: listed in one place, chosen once a call, the same for the gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import hfadapt_kernels as hk
from hfadapt_kernels import backend, native
from hfadapt_kernels.calls import arguments_of, takes

PACKAGE = Path(hk.__file__).parent
OPS = sorted(path.parent.name for path in PACKAGE.glob("*/op.py"))


def leaf(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


def call(op):
    """One small call of each op, with a result that has a gradient."""
    batch = hk.TaskBatch.from_ids([0, 1, 0], 2)
    x, two = leaf(3, 4, 8), lambda *shape: [leaf(*shape), leaf(*shape)]
    if op == "parallel_adapter_norm":
        return hk.parallel_adapter_norm(x, x, two(2, 8), two(8, 2), batch, norm="layer")
    if op == "grouped_lora":
        return hk.grouped_lora(x, two(2, 8), two(8, 2), 1.0, batch)
    if op == "lora_linear":
        return hk.lora_linear(x, leaf(8, 8), None, two(2, 8), two(8, 2), 1.0, batch)
    if op == "pal_attention":
        squares = [two(4, 4) for _ in range(3)]
        return hk.pal_attention(x, two(4, 8), two(8, 4), *squares, batch, num_heads=2)
    if op == "prefix_attention":
        heads = leaf(3, 2, 4, 4)
        return hk.prefix_attention(heads, heads, heads, two(2, 3, 4), two(2, 3, 4), batch)
    if op == "frozen_linear":
        return hk.frozen_linear(leaf(3, 40, 8), hk.PackedLinear(torch.randn(8, 8), "bfloat16"))
    assert op == "adapter_fusion"
    square = torch.eye(8)
    return hk.adapter_fusion(x, two(3, 4, 2), two(8, 2), None, [1.0, 1.0], square, None, square, None, square)


EVERY = sorted(backend._OPS)


class Counted(dict):
    """The environment, counting who asks for the backend."""

    reads = 0

    def __contains__(self, key):
        type(self).reads += key == backend._KEY
        return super().__contains__(key)


@pytest.mark.parametrize("op", EVERY)
def test_a_call_and_its_gradient_read_the_environment_once(op, monkeypatch):
    call(op).sum().backward()
    # A packed weight is made for a backend: that it reads for itself.
    packed = hk.PackedLinear(torch.randn(8, 8), "bfloat16")
    monkeypatch.setattr(hk, "PackedLinear", lambda *arguments: packed)
    monkeypatch.setattr(Counted, "reads", 0)
    monkeypatch.setattr(backend, "_ENVIRONMENT", Counted(backend._ENVIRONMENT))
    call(op).sum().backward()
    assert Counted.reads == 1


def test_a_change_of_the_environment_takes_effect_at_the_next_call(monkeypatch):
    monkeypatch.setenv("HFADAPT_BACKEND", "reference")
    assert hk.requested_backend() == "reference"
    monkeypatch.setenv("HFADAPT_BACKEND", "mychip")
    with pytest.raises(hk.BackendError, match="mychip"):
        call("grouped_lora")


@pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
@pytest.mark.parametrize("op", EVERY)
def test_the_gradient_is_computed_by_what_computed_the_result(op, monkeypatch):
    """What a backend leaves for the backward (the C++ kernels: no log-sum-exp) another one does not read."""
    entry, ran = backend._OPS[op], []

    def watched(name, implementation):
        def backward(*arguments):
            ran.append(name)
            return implementation.backward(*arguments)

        return dataclasses.replace(implementation, backward=backward)

    watching = {name: watched(name, implementation) for name, implementation in entry._by_backend.items()}
    monkeypatch.setattr(entry, "_by_backend", watching)
    monkeypatch.setattr(entry, "_chosen", {})
    with hk.use_backend("cpu"):
        result = call(op).sum()
    with hk.use_backend("reference"):
        result.backward()
    assert ran == ["cpu"]


def test_a_failing_call_leaves_no_choice_behind():
    entry = backend.FusedOp("never_called")
    backend._OPS.pop("never_called")
    chosen = backend.Implementation("reference", lambda: None, lambda: None)

    def fails():
        assert entry.running is chosen
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        entry.run(chosen, fails)
    assert entry.running is None


def test_backends_are_listed_in_op_py_alone():
    registering = {path.name for path in PACKAGE.glob("*/*.py") if ".register(" in path.read_text("utf-8")}
    assert registering == {"op.py"}


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_the_same_files(op):
    files = {path.name for path in (PACKAGE / op).iterdir()}
    assert {"README.md", "op.py", "cpu.py", "triton.py", "reference.py", "fallback.py"} <= files


@pytest.mark.parametrize("op", [op for op in OPS if op != "frozen_linear"])
def test_the_schema_is_the_call(op):
    """`torch.library` passes by position: the fields of what backends are handed stand in the schema's order."""
    import importlib

    schema = importlib.import_module(f"hfadapt_kernels.{op}.schema")
    forward = getattr(schema, "Forward", None) or schema.CoreInputs
    for name, arguments in ((op, forward), (f"{op}_backward", schema.Backward)):
        written = getattr(torch.ops.hfadapt, name).default._schema.arguments
        assert [argument.name for argument in written] == list(arguments._fields)
        assert arguments_of(arguments).count(",") == len(written) - 1
        assert takes(arguments)(lambda call: call)(*range(len(written))) == arguments(*range(len(written)))
