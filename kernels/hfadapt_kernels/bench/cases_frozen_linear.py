"""frozen_linear against torch's products."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from ..frozen_linear import PackedLinear, frozen_linear
from .case import Case, Workload
from .rivals import gradients, inference, onednn_linear, torch_dynamic_linear

__all__ = ["cases"]

ROWS = 2048


def _forward(kind: str, inputs: int, outputs: int) -> Workload:
    x, weight, bias = torch.randn(ROWS, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    packed = PackedLinear(weight, kind)
    low = kind not in ("float32", "int8_dynamic")
    onednn = onednn_linear(weight.bfloat16() if low else weight, bias.bfloat16() if low else bias)
    given = x.bfloat16() if low else x
    low_weight, low_bias = weight.bfloat16(), bias.bfloat16()
    calls = {"F.linear float32": lambda: F.linear(x, weight, bias), "oneDNN, packed": lambda: onednn(given)}
    if low:
        calls["F.linear bfloat16"] = lambda: F.linear(given, low_weight, low_bias)

    if kind == "int8_dynamic":
        calls["torch, dynamic int8"] = functools.partial(torch_dynamic_linear(weight, bias), x)
    return Workload(
        ours=inference(lambda: frozen_linear(given, packed, bias)),
        rivals={name: inference(call) for name, call in calls.items()},
        flops=2.0 * ROWS * inputs * outputs,
        bytes=given.element_size() * (ROWS * (inputs + outputs) + inputs * outputs),
        dtype="bfloat16" if low else "float32",
        shape={"rows": ROWS, "inputs": inputs, "outputs": outputs, "weights": kind},
    )


def _both(kind: str) -> Workload:
    low = kind not in ("float32", "int8_dynamic")
    x, weight, grad = torch.randn(ROWS, 768), torch.randn(768, 768), torch.randn(ROWS, 768)
    given = (x.bfloat16() if low else x).requires_grad_()
    plain = x.clone().requires_grad_()
    packed = PackedLinear(weight, kind)
    return Workload(
        ours=gradients(lambda: frozen_linear(given, packed), [given], grad.to(given.dtype)),
        rivals={"F.linear float32": gradients(lambda: F.linear(plain, weight), [plain], grad)},
        flops=4.0 * ROWS * 768 * 768,
        bytes=given.element_size() * (4.0 * ROWS * 768 + 2 * 768 * 768),
        dtype="bfloat16" if low else "float32",
        shape={"rows": ROWS, "inputs": 768, "outputs": 768, "weights": kind},
    )


def cases() -> list[Case]:
    """Square and feed-forward shapes of a hidden size of 768."""
    found = []
    for kind, goal in (("float32", 2.2), ("bfloat16", 4.2), ("int8", None), ("int8_dynamic", None)):
        for inputs, outputs in ((768, 768), (768, 3072), (3072, 768)):
            goals = {"F.linear float32": goal} if goal and inputs == outputs else {}
            found.append(
                Case(
                    f"frozen_linear {kind} {inputs}x{outputs}",
                    "frozen_linear",
                    lambda kind=kind, inputs=inputs, outputs=outputs: _forward(kind, inputs, outputs),
                    goals,
                )
            )
        found.append(Case(f"frozen_linear forward + backward {kind}", "frozen_linear", lambda kind=kind: _both(kind)))
    return found
