"""What the kernel tests share: the float64 error rule, NaN-filled workspaces, the interpreter's bfloat16 repair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "assert_as_good_as_eager", "assert_as_good_as_eager_nearby", "launches", "leaves", "nan_poisoned",
    "patch_interpreter_once", "rel_error", "repair_interpreter_bfloat16", "threads",
]  # fmt: skip


def rel_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the error over root mean square of ``exact`` (float64); absolute where ``exact`` is 0."""
    actual, exact = actual.detach().double(), exact.detach().double()
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, exact {tuple(exact.shape)}"
    if exact.numel() == 0:
        return 0.0
    error, size = (actual - exact).norm().item(), exact.norm().item()
    return error / size if size > 0 else error


def assert_as_good_as_eager(actual: Tensor, eager: Tensor, exact: Tensor, name: str = "result") -> None:
    """The error against float64 is at most twice that of eager torch at the same dtype (plus half an ulp).

    Args:
        actual: What the op returned.
        eager: The same formula in eager torch at the dtype of ``actual``.
        exact: The same formula in float64 on the same (already rounded) inputs.
        name: Which result, for the message.
    """
    assert actual.dtype == eager.dtype, f"{name}: dtype {actual.dtype}, eager {eager.dtype}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    ours, theirs = rel_error(actual, exact), rel_error(eager, exact)
    # Half an ulp more, for when eager happens to be exact (all inputs 0, one element).
    bound = 2.0 * theirs + torch.finfo(actual.dtype).eps / 2
    assert ours <= bound, f"{name}: error {ours:.2e} against float64, eager has {theirs:.2e} (bound {bound:.2e})"


def assert_as_good_as_eager_nearby(
    actual: Sequence[Tensor],
    evaluate: Callable[[list[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    groups: Mapping[str, Sequence[int]],
    *,
    draws: int = 8,
) -> None:
    """As `assert_as_good_as_eager`, for problems of a few numbers: eager's error is the largest of several draws.

    Eager's error on one problem is one sample of its roundings. Where a result is a handful of numbers, the sample
    may be ten times below (or above) what is usual, and the rule would compare luck with luck. So where the first
    comparison fails, eager also solves neighbouring problems: every input moved by at most one unit in the last place,
    which leaves the condition of the problem as it is and draws the roundings anew. How far the exact result moves with
    the inputs counts as an error of eager too: no better is a result of a few numbers known. The factor 2 stays.

    Args:
        actual: What the op returned.
        evaluate: The formula in eager torch, results in the order of ``actual``, at the dtype of the inputs given.
        inputs: The inputs of ``actual``, of order one.
        groups: Name to indices of the results that are judged together.
        draws: Number of neighbouring problems.
    """
    dtype = inputs[0].dtype

    def together(results: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: torch.cat([results[i].flatten() for i in part]) for name, part in groups.items()}

    def solve(problem: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return together(evaluate(list(problem))), together(evaluate([t.double() for t in problem]))

    ours, (eager, exact) = together(actual), solve(inputs)
    largest = {name: rel_error(eager[name], exact[name]) for name in groups}
    tolerance = torch.finfo(dtype).eps / 2
    make = torch.Generator().manual_seed(0)
    for draw in range(draws + 1):
        late = {name for name in groups if rel_error(ours[name], exact[name]) > 2.0 * largest[name] + tolerance}
        if not late or draw == draws:
            break
        moved = [
            t + t * (torch.rand(t.shape, generator=make) * 2 - 1).to(dtype) * torch.finfo(dtype).eps for t in inputs
        ]
        near_eager, near_exact = solve(moved)
        for name in groups:
            moved_by = rel_error(near_exact[name], exact[name])
            largest[name] = max(largest[name], rel_error(near_eager[name], near_exact[name]), moved_by)
    for name in groups:
        error, bound = rel_error(ours[name], exact[name]), 2.0 * largest[name] + tolerance
        assert torch.isfinite(ours[name]).all(), f"{name}: not finite"
        # Far in the tail of an activation everything is 1e-20 of the inputs: wrong by that much is not wrong.
        if (ours[name].double() - exact[name]).norm() <= torch.finfo(dtype).eps ** 2:
            continue
        assert error <= bound, f"{name}: error {error:.2e} against float64, eager and inputs {largest[name]:.2e}"


@contextlib.contextmanager
def nan_poisoned() -> Iterator[None]:
    """Every uninitialised tensor is filled with NaN, so that an element that a kernel forgets to write shows."""
    # torch makes the flag a property of its module's class, which type checkers do not see
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    fill_before = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = fill_before


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` threads of torch's pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leaves(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Fresh leaves of another dtype that require gradients, for running a reference beside an op."""
    return [None if t is None else t.detach().to(dtype).clone().requires_grad_() for t in tensors]


@contextlib.contextmanager
def launches(
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Iterator[list[str]]:
    """Names of the Triton kernels that the block launches, on a card or in the interpreter, in their order.

    Args:
        around: Entered for each launch; what a launcher does on the way is not the op's.
    """
    from triton.runtime import interpreter, jit

    names: list[str] = []
    kinds: tuple[Any, ...] = (jit.JITFunction, interpreter.InterpretedFunction)
    before = [kind.run for kind in kinds]

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            names.append(kernel.__name__)
            with around():
                return run(kernel, *args, **kwargs)

        return launch

    for kind, run in zip(kinds, before, strict=True):
        kind.run = counted(run)
    try:
        yield names
    finally:
        for kind, run in zip(kinds, before, strict=True):
            kind.run = run


def patch_interpreter_once() -> None:
    """Let Triton's interpreter change Triton's language once. Call once, in a process with TRITON_INTERPRET=1.

    The interpreter looks through every name of the language at each launch, and again at each call of a function inside
    a kernel, which takes most of the time of small kernels. In such a process nothing else needs it as it was.
    """
    from triton.runtime import interpreter

    patch, seen = interpreter._patch_lang, {}

    class Kept:
        def restore(self) -> None:
            """Nothing is put back."""

    def once(function: Any) -> Kept:
        # Which parts of the language are changed hangs on what the module of a function imports.
        names = function.__globals__
        if id(names) not in seen:
            seen[id(names)] = names
            patch(function)
        return Kept()

    interpreter._patch_lang = once


def repair_interpreter_bfloat16() -> None:
    """Make Triton's interpreter compute bfloat16 as a GPU does. Call once, in a process with TRITON_INTERPRET=1.

    The interpreter stores bfloat16 as the raw 16 bits in numpy and multiplies those; casts truncate. This converts
    operands to float32 for products and element-wise arithmetic, and rounds casts to nearest even.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    handle: Any = interpreter.TensorHandle
    builder: Any = interpreter.InterpreterBuilder

    def widen(value: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if value.dtype.scalar != tl.bfloat16:
            return value
        return handle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrow(data: np.ndarray) -> interpreter.TensorHandle:
        bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return handle(np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16).reshape(data.shape), tl.bfloat16)

    dot, cast, binary = builder.create_dot, builder.cast_impl, builder.binary_op

    def create_dot(self, a, b, acc, *rest):  # type: ignore[no-untyped-def]
        return dot(self, widen(a), widen(b), acc, *rest)

    def cast_impl(self, value, target):  # type: ignore[no-untyped-def]
        scalar = target.scalar if hasattr(target, "scalar") else target
        if value.dtype.scalar == tl.float32 and scalar == tl.bfloat16:
            return narrow(value.data)
        return cast(self, value, target)

    def binary_op(self, left, right, op):  # type: ignore[no-untyped-def]
        if left.dtype.scalar != tl.bfloat16:
            return binary(self, left, right, op)
        result = binary(self, widen(left), widen(right), op)
        return narrow(result.data) if result.data.dtype == np.float32 else result

    builder.create_dot, builder.cast_impl, builder.binary_op = create_dot, cast_impl, binary_op
