"""Errors of the ops say what was expected, what was got and one step that helps, which is true for that very fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.backend import FusedOp, Implementation, add_backend
from hfadapt_kernels.errors import KernelError, ShapeError
from tests.kernels.test_arguments import good, two

BATCH = hk.TaskBatch.from_ids([0, 1], 2)
WEIGHT = torch.randn(8, 8)
ROWS = torch.randn(2, 3, 8)
WIDE = hk.PackedLinear(torch.randn(6, 8))


def call(op: str, **change: Any) -> Any:
    function, arguments = good()[op]
    return function(**arguments | change)


def isa(name: str) -> None:
    with native.use_isa(name):
        pass


def backend(name: str) -> None:
    with hk.use_backend(name):
        pass


#: A mistake, and what the message says of it: what is wrong, what was expected, what was got, what to do.
MISTAKES: dict[str, tuple[Callable[[], Any], str, str, str, str]] = {
    "an activation that is nearly one": (
        lambda: hk.get_activation("gleu"), "activation: activation is unknown", "one of ['gelu'", "'gleu'",
        "Did you mean 'gelu'?",
    ),
    "an activation like no other": (
        lambda: call("pal_attention", activation="xyz"), "pal_attention: activation is unknown", "'tanh'", "'xyz'",
        "Use None for no activation.",
    ),
    "a row beyond the tasks": (
        lambda: hk.TaskBatch.from_ids([0, 4], 2), "ids[1] is out of range", "-1 (no task) or 0..1", "4",
        "Use num_tasks=5",
    ),
    "a row below no task": (
        lambda: hk.TaskBatch.from_ids([-3], 2), "ids[0] is out of range", "-1 (no task) or 0..1", "-3", "Use -1",
    ),
    "a row of no tasks": (
        lambda: hk.TaskBatch.from_ids([0], 0), "ids[0] is out of range", "there are no tasks", "0", "Use num_tasks=1",
    ),
    "a number as seed": (
        lambda: call("grouped_lora", dropout=0.5, training=True, seed=3), "grouped_lora: seed", "int64 [1] on cpu", "3",
        "Use torch.tensor([3], device='cpu').",
    ),
    "two seeds": (
        lambda: call("prefix_attention", dropout=0.5, training=True, seed=torch.tensor([3, 4])), "seed",
        "int64 [1] on cpu", "torch.int64 [2] on cpu", "Use seed=None",
    ),
    "a sparse x": (
        lambda: call("grouped_lora", x=ROWS.to_sparse()), "x is not what it should be", "a dense tensor",
        "of sparse_coo layout", "Use x.to_dense().",
    ),
    "complex weights": (
        lambda: call("grouped_lora", a=[WEIGHT[:4].to(torch.complex64)] * 2), "a[0] is not what it should be",
        "a dense tensor of real numbers", "torch.complex64", "Use a[0].real.",
    ),
    # grouped_lora
    "an x without rows": (
        lambda: call("grouped_lora", x=torch.randn(8)), "grouped_lora: x", "a floating-point [B, ..., Din]",
        "torch.float32 [8] on cpu", "Use x[None, ...]",
    ),
    "another number of rows": (
        lambda: call("grouped_lora", x=torch.randn(4, 3, 8)), "batch", "4 task ids, one a row of x", "2",
        "Use batch.expand(2)",
    ),
    "a number of rows that no repetition makes": (
        lambda: call("grouped_lora", x=torch.randn(3, 3, 8)), "batch", "3 task ids, one a row of x", "2",
        "Use TaskBatch.from_ids with 3 ids",
    ),
    "an A too few": (
        lambda: call("grouped_lora", a=two(4, 8)[:1]), "number of tasks", "each of the batch's 2 tasks", "1 and 2",
        "Give a as lists of 2",
    ),
    "a task too many": (
        lambda: call("grouped_lora", a=two(4, 8) * 2, b=two(8, 4) * 2), "number of tasks", "the batch's 2 tasks",
        "4 and 4", "Use TaskBatch.from_ids(ids, 4)",
    ),
    "an A the other way round": (
        lambda: call("grouped_lora", a=two(8, 4)), "a[0]", "torch.float32 [R, 8] on cpu", "torch.float32 [8, 4] on cpu",
        "Use a[0].T",
    ),
    "an A of another width": (
        lambda: call("grouped_lora", a=two(4, 5)), "a[0]", "torch.float32 [R, 8] on cpu", "[4, 5]",
        "The last axis of x has 8 numbers",
    ),
    "a B of another rank": (
        lambda: call("grouped_lora", b=two(8, 5)), "b[0]", "torch.float32 [8, 4] on cpu", "[8, 5]",
        "R is that of a[0]",
    ),
    "a y of another width": (
        lambda: call("grouped_lora", y=torch.randn(2, 3, 7)), "grouped_lora: y", "[2, 3, 8]", "[2, 3, 7]",
        "Give as y what the linear computes",
    ),
    "a y of joined axes": (
        lambda: call("grouped_lora", y=torch.randn(6, 8)), "grouped_lora: y", "[2, 3, 8]", "[6, 8]",
        "Use y.reshape([2, 3, 8])",
    ),
    "a factor too few": (
        lambda: call("grouped_lora", scale=[1.0]), "scale", "one number, or 2", "1", "Give each task its factor",
    ),
    "a factor for each output": (
        lambda: call("grouped_lora", scale=two(8)), "scale[0]", "a number or a tensor of one",
        "torch.float32 [8] on cpu", "scale[0][:, None] * b[0]",
    ),
    "a linear the other way round": (
        lambda: call("lora_linear", weight=torch.randn(8, 6), b=two(6, 4)), "lora_linear: weight or bias",
        "torch.float32 [6, 8] and [6]", "torch.float32 [8, 6] on cpu, bias None", "Use weight.T",
    ),
    "a linear in float64": (
        lambda: call("lora_linear", weight=WEIGHT.double()), "weight or bias", "torch.float32 [8, 8]",
        "torch.float64 [8, 8]", "Use weight.to('cpu', torch.float32).",
    ),
    # frozen_linear
    "no type of panels": (
        lambda: hk.PackedLinear(WEIGHT, "int4"), "PackedLinear: dtype",
        "['bfloat16', 'float32', 'int8', 'int8_dynamic']", "'int4'",
        "Did you mean 'int8'?",
    ),
    "a dtype of torch's": (
        lambda: hk.PackedLinear(WEIGHT, torch.bfloat16), "PackedLinear: dtype", "'bfloat16'",
        "torch.bfloat16", "Did you mean 'bfloat16'?",
    ),
    "a weight of a convolution": (
        lambda: hk.PackedLinear(torch.randn(2, 3, 3)), "weight", "a floating-point tensor [O, Din]", "[2, 3, 3]",
        "Use weight.flatten(0, 1)",
    ),
    "x of another linear": (
        lambda: hk.frozen_linear(torch.randn(2, 5), WIDE), "frozen_linear: x", "last axis 8", "[2, 5]",
        "Pack the weight [O, 5]",
    ),
    "a weight packed the other way round": (
        lambda: hk.frozen_linear(torch.randn(2, 6), WIDE), "frozen_linear: x", "last axis 8", "[2, 6]",
        "PackedLinear.pack(weight.T)",
    ),
    "a bias of two axes": (
        lambda: hk.frozen_linear(torch.randn(2, 8), WIDE, torch.randn(1, 6)), "bias", "[6]", "[1, 6]",
        "Use bias.reshape([6])",
    ),
    # pal_attention
    "too many heads": (
        lambda: call("pal_attention", num_heads=3), "encoder[0]", "S a multiple of num_heads=3", "[4, 8]",
        "Use num_heads of 1, 2, 4 for S = 4.",
    ),
    "a decoder the other way round": (
        lambda: call("pal_attention", decoder=two(4, 8)), "decoder[0]", "torch.float32 [8, 4] on cpu", "[4, 8]",
        "Use decoder[0].T",
    ),
    "a query too few": (
        lambda: call("pal_attention", query=two(4, 4)[:1]), "query", "one tensor for each of the batch's 2 tasks", "1",
        "Give query as lists of 2",
    ),
    "a mask of numbers": (
        lambda: call("pal_attention", mask=torch.ones(2, 3)), "mask", "bool [2, 3]", "torch.float32 [2, 3] on cpu",
        "Use mask.bool()",
    ),
    "a mask for each head": (
        lambda: call("pal_attention", mask=torch.ones(2, 2, 3, 3)), "mask", "bool [2, 3]", "[2, 2, 3, 3]",
        "Use mask[:, :1]",
    ),
    # parallel_adapter_norm
    "an h of other tokens": (
        lambda: call("parallel_adapter_norm", h=ROWS[:, :2]), "parallel_adapter_norm: h", "[2, 3] + [Dh] as x",
        "[2, 2, 8]", "their last axes alone may differ",
    ),
    "an h in float64": (
        lambda: call("parallel_adapter_norm", h=ROWS.double()), "h", "torch.float32 on cpu as x",
        "torch.float64 on cpu", "Use h.to('cpu', torch.float32).",
    ),
    "a norm that is nearly one": (
        lambda: call("parallel_adapter_norm", norm="layernorm"), "norm", "None, 'layer' or 'rms'", "'layernorm'",
        "Did you mean 'layer'?",
    ),
    "a norm's weight without it": (
        lambda: call("parallel_adapter_norm", norm_weight=torch.ones(8)), "norm_weight and norm_bias need a norm",
        "norm='layer' or 'rms'", "norm=None with norm_weight", "Use 'layer'",
    ),
    "factors of two kinds": (
        lambda: call("parallel_adapter_norm", scale=[1.0, torch.ones(1)]), "scale mixes numbers and tensors",
        "all numbers or all tensors", "float, Tensor", "Use torch.tensor([s])",
    ),
    "an up too many": (
        lambda: call("parallel_adapter_norm", up=two(8, 4) * 2), "up", "one tensor a task (2)", "4",
        "Give up as lists of 2",
    ),
    "a down of no rank": (
        lambda: call("parallel_adapter_norm", down=two(0, 8)), "down[0]", "[R, 8] with R >= 1", "[0, 8]",
        "R the first of each task's own down",
    ),
    "a residual of one row": (
        lambda: call("parallel_adapter_norm", residual=ROWS[:1]), "residual", "[2, 3, 8]", "[1, 3, 8]",
        "D is the last axis of x",
    ),
    # prefix_attention
    "heads that do not divide": (
        lambda: call("prefix_attention", query=torch.randn(2, 3, 3, 4)), "key's heads",
        "a divisor of the query's 3 heads", "2", "Use key and value of 1, 3 heads",
    ),
    "a prefix too few": (
        lambda: call("prefix_attention", prefix_value=two(2, 5, 4)[:1]), "number of prefixes",
        "each of the batch's 2 tasks", "2 and 1", "Give prefix_value as lists of 2",
    ),
    "a prefix of the model's width": (
        lambda: call("prefix_attention", prefix_key=two(2, 5, 3)), "prefix_key[0]", "torch.float32 [2, P, 4] on cpu",
        "[2, 5, 3]", "P of each task's own prefix",
    ),
    "a padding mask": (
        lambda: call("prefix_attention", mask=torch.ones(2, 3, dtype=torch.long)), "mask",
        "broadcast to [2, 2, 3, 3]", "torch.int64 [2, 3] on cpu", "Use mask.bool()[:, None, None, :].",
    ),
    "a mask as bias": (
        lambda: call("prefix_attention", position_bias=torch.ones(1, 2, 3, 3, dtype=torch.bool)), "position_bias",
        "a dense tensor of real numbers", "torch.bool of strided layout, [1, 2, 3, 3]", "Use position_bias.float()",
    ),
    "a form that is nearly one": (
        lambda: call("prefix_attention", form="no_gate"), "form", "one of ('softmax', 'no_gating', 'relu')",
        "'no_gate'", "Did you mean 'no_gating'?",
    ),
    "the gate of a form without one": (
        lambda: call("prefix_attention", form="relu", return_gate=True), "return_gate", "form='softmax'", "'relu'",
        "Use return_gate=False.",
    ),
    # adapter_fusion
    "nothing to fuse": (
        lambda: call("adapter_fusion", hidden=[], up=[], scale=[]), "number of adapters", "at least one", "hidden 0",
        "Leave the op out",
    ),
    "a scale too few": (
        lambda: call("adapter_fusion", scale=[1.0]), "number of adapters", "as hidden tensors", "scale 1",
        "Give each list one entry an adapter",
    ),
    "a fusion's factor of five numbers": (
        lambda: call("adapter_fusion", scale=[1.0, torch.ones(5)]), "scale[1]", "a number, [1] or [8]", "[5]",
        "one for each of the 8 features of up[1]",
    ),
    "a hidden of other tokens": (
        lambda: call("adapter_fusion", hidden=two(2, 4, 4)), "hidden[0]", "torch.float32 [2, 3, R] on cpu", "[2, 4, 4]",
        "B, T and D are those of the query",
    ),
    "a cold fusion": (
        lambda: call("adapter_fusion", temperature=0.0), "temperature", "a number above 0", "0.0", "Use 1.0",
    ),
    # backends
    "a backend that is nearly one": (
        lambda: backend("tritn"), "backend: unknown name", "auto or one of", "'tritn'", "Did you mean 'triton'?",
    ),
    "an op that is nearly one": (
        lambda: add_backend("groupd_lora", Implementation("mine", call, call)), "add_backend: op", "'grouped_lora'",
        "'groupd_lora'", "Did you mean 'grouped_lora'?",
    ),
    "a backend of ours": (
        lambda: add_backend("grouped_lora", Implementation("cpu", call, call)), "backend of grouped_lora",
        "a name that is not taken", "'cpu'", "Use a name of your own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_says_what_was_expected_got_and_helps(mistake: str) -> None:
    run, what, expected, got, hint = MISTAKES[mistake]
    with pytest.raises(KernelError) as caught:
        run()
    said, _, rest = str(caught.value).partition(": expected ")
    wanted, _, rest = rest.partition(", got ")
    given, _, cure = rest.partition(". ")
    assert what in said and expected in wanted and hint in cure, str(caught.value)
    assert given.startswith(got) or got in given, str(caught.value)


def test_an_explicit_backend_that_cannot_run_names_those_that_can() -> None:
    op = FusedOp("test_misfits")
    op.register("reference", call)
    try:
        with pytest.raises(hk.BackendError, match=r"expected one that can: reference, got .*HFADAPT_BACKEND=auto"):
            op.select("cpu", torch.float32, "triton")
        with pytest.raises(hk.BackendError, match=r"which none of ours does, got .*add_backend\('test_empty', ...\)"):
            FusedOp("test_empty").select("cpu", torch.float32, "triton")
    finally:
        from hfadapt_kernels import backend as module

        for name in ("test_misfits", "test_empty"):
            module._OPS.pop(name, None)


@pytest.mark.skipif(not native.available(), reason="needs the C++ library")
def test_an_unknown_instruction_set_names_those_of_this_processor() -> None:
    before = native.isa()
    with pytest.raises(hk.BackendError, match=r"expected one of \['generic'.*got 'avx3'. Did you mean 'avx") as caught:
        isa("avx3")
    assert str(before) in str(caught.value) and native.isa() == before


def test_without_the_library_an_instruction_set_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "it was left out")
    with pytest.raises(hk.BackendError, match=r"expected the library _C .*, got it was left out. Leave use_isa out"):
        isa("generic")


def test_a_call_under_compile_is_refused_with_the_same_words() -> None:
    x, a, b = torch.randn(2, 3, 8), two(8, 4), two(8, 4)
    compiled = torch.compile(lambda: hk.grouped_lora(x, a, b, 1.0, BATCH), backend="eager")
    with pytest.raises(ShapeError, match=r"a\[0\]: expected[\s\S]*Use a\[0\]\.T"):
        compiled()
