"""The ops on a card with little shared memory, simulated in the interpreter; started by run_cases.py.

Nothing is launched that does not fit: a smaller committed configuration is, which gives the same numbers, or the op
says which kernel takes how much of what is there.
"""

from __future__ import annotations

import contextlib

import torch
from small_calls import IDS, OPS, TASKS, Frozen, Lora, Norm, Pal, Prefix, equal, inputs, step, weights
from triton import OutOfResources
from triton.runtime import driver, interpreter

import hfadapt_kernels as hk
from hfadapt_kernels.prefix_attention import triton as prefix
from hfadapt_kernels.testing import launches, rel_error
from hfadapt_kernels.triton import shared

# A launch of these takes 32 bytes at most, and is of no op.
SHARED_BY_ALL = {"order_kernel", "numbers_kernel"}
TINY = 8
NAMES = {
    "Norm": "parallel_adapter_norm", "Numbers": "parallel_adapter_norm", "Mixed": "parallel_adapter_norm",
    "Lora": "grouped_lora", "Fixed": "grouped_lora", "Linear": "lora_linear", "Prefix": "prefix_attention",
    "Made": "prefix_attention", "Fusion": "adapter_fusion",
    "Pal": "pal_attention", "Frozen": "frozen_linear",
}  # fmt: skip


@contextlib.contextmanager
def card(size):
    """A card with ``size`` bytes of shared memory a block; its limit may be changed in the block."""
    limit, plain = {"size": size}, shared.has
    shared.has = lambda device: limit["size"]
    try:
        yield limit
    finally:
        shared.has = plain


@contextlib.contextmanager
def greedy(kernel):
    """``kernel`` takes a megabyte."""
    plain = shared.needs
    shared.needs = lambda name, *rest: 1 << 20 if name == kernel else plain(name, *rest)
    try:
        yield
    finally:
        shared.needs = plain


def refused(call):
    with launches() as names:
        try:
            call()
        except hk.SharedMemoryError as error:
            return error, names
    raise AssertionError("launched")


def test_every_kernel_of_every_op_is_refused_before_its_launch():
    for kind in OPS:
        torch.manual_seed(0)
        case, rows = kind(), hk.TaskBatch.from_ids(IDS, TASKS)
        with hk.use_backend("triton"), launches() as names:
            step(case, rows)
        own = sorted({*names} - SHARED_BY_ALL)
        assert own
        for kernel in own:
            with hk.use_backend("triton"), card(64 * 1024), greedy(kernel):
                error, before = refused(lambda case=case, rows=rows: step(case, rows))
            assert kernel not in before, (kernel, before)
            text = str(error)
            assert error.op == NAMES[kind.__name__] and text.startswith(f"{error.op}: "), text
            for part in (kernel, "expected at most 65536", "got 1048576", "HFADAPT_BACKEND=reference"):
                assert part in text, (part, text)


def test_a_tiny_card_refuses_forward_and_backward_of_every_op_by_the_committed_figures():
    for kind in OPS:
        torch.manual_seed(0)
        case, rows = kind(), hk.TaskBatch.from_ids(IDS, TASKS)
        with hk.use_backend("triton"), card(TINY) as limit:
            error, names = refused(lambda case=case, rows=rows: case.run(rows))
            assert error.op == NAMES[kind.__name__] and f"at most {TINY}, got" in str(error), error
            assert {*names} <= SHARED_BY_ALL, names
            limit["size"] = 1 << 20
            out = case.run(rows)
            limit["size"] = TINY
            grads = torch.ones_like(out)
            error, names = refused(lambda out=out, c=case, g=grads: torch.autograd.grad(out, c.leaves(), g))
            assert error.op == NAMES[kind.__name__] and f"at most {TINY}, got" in str(error), error
            assert {*names} <= SHARED_BY_ALL, names
        # What was refused leaves nothing behind.
        with hk.use_backend("triton"):
            equal(case, rows, step(case, rows))


class Heads(Prefix):
    def __init__(self, dim, dtype):
        self.qkv = [inputs(len(IDS), 2, 20, dim).detach().to(dtype).requires_grad_() for _ in range(3)]
        self.prefix = [
            [w.detach().to(dtype).requires_grad_() for w in weights((2, 3, dim), (2, 18, dim))] for _ in "kv"
        ]


def test_smaller_configurations_are_taken_where_they_fit_and_give_the_same():
    for dim, dtype, expected in (
        (128, torch.bfloat16, {"dq", "dprefix"}), (256, torch.bfloat16, {"fwd", "dq", "dkv", "dprefix"}),
        (100, torch.float32, {"dkv", "dprefix"}),
    ):  # fmt: skip
        torch.manual_seed(0)
        case, rows = Heads(dim, dtype), hk.TaskBatch.from_ids(IDS, TASKS)
        with hk.use_backend("triton"), card(48 * 1024), chosen() as other:
            found = step(case, rows)
        assert {name for name, is_other in other.items() if is_other} == expected, (dim, dtype, other)
        assert {*other} == {"fwd", "dq", "dkv", "dprefix"}
        with hk.use_backend("triton"), card(99 * 1024), chosen() as other:
            large = step(case, rows)
        assert not any(other.values())
        with hk.use_backend("reference"):
            wanted = step(case, rows)
        for ours, same, theirs in zip(found, large, wanted, strict=True):
            limit = 1e-5 if dtype == torch.float32 else 1.05 * rel_error(same, theirs) + 2**-9
            assert rel_error(ours, theirs) < limit, (dim, dtype, rel_error(ours, theirs), limit)


@contextlib.contextmanager
def chosen():
    """By kernel of prefix_attention: whether it took another configuration than that of its target."""
    other, plain = {}, prefix.fitting

    def seen(name, device, launches, *rest):
        launch = plain(name, device, launches, *rest)
        other[name.removeprefix("prefix_attention_").removesuffix("_kernel")] = launch != launches[0]
        return launch

    prefix.fitting = seen
    try:
        yield other
    finally:
        prefix.fitting = plain


def test_heads_that_no_configuration_fits_are_named():
    case, rows = Heads(256, torch.float32), hk.TaskBatch.from_ids(IDS, TASKS)
    with hk.use_backend("triton"), card(64 * 1024):
        error, names = refused(lambda: step(case, rows))
    assert "prefix_attention_dkv_kernel" in str(error) and "got 66560" in str(error)
    assert "prefix_attention_dkv_kernel" not in names


def test_what_triton_refuses_itself_is_said_in_the_same_parts():
    plain = interpreter.InterpretedFunction.run
    for kind, kernel in ((Norm, "adapter_norm_bwd_kernel"), (Lora, "lora_rows_kernel"), (Pal, "pal_linear_kernel"),
                         (Frozen, "frozen_linear_kernel")):  # fmt: skip

        def short(self, *args, kernel=kernel, **kwargs):
            if self.__name__ == kernel:
                raise OutOfResources(2048, 1024, "threads")
            return plain(self, *args, **kwargs)

        case, rows = kind(), hk.TaskBatch.from_ids(IDS, TASKS)
        interpreter.InterpretedFunction.run = short
        try:
            with hk.use_backend("triton"):
                error, _ = refused(lambda case=case, rows=rows: step(case, rows))
        finally:
            interpreter.InterpretedFunction.run = plain
        assert error.op == NAMES[kind.__name__] and isinstance(error.__cause__, OutOfResources)
        for part in ("threads", "expected at most 1024", "got 2048", "HFADAPT_BACKEND=reference"):
            assert part in str(error), error


def test_other_errors_are_left_as_they_are():
    def broken(*arguments):
        raise ZeroDivisionError("theirs")

    try:
        shared.named("op", broken)()
    except ZeroDivisionError as error:
        assert error.__cause__ is None
    else:
        raise AssertionError("swallowed")


def test_what_a_card_has_is_asked_of_tritons_driver_for_its_index():
    class Driver:
        class utils:
            @staticmethod
            def get_device_properties(index):
                return {"max_shared_mem": 1000 + index}

    before, driver._active = driver._active, Driver
    current, torch.cuda.current_device = torch.cuda.current_device, lambda: 7
    try:
        assert shared.has(torch.device("cuda", 3)) == 1003
        assert shared.has(torch.device("cuda")) == 1007
    finally:
        driver._active, torch.cuda.current_device = before, current
        shared._of_card.cache_clear()
    assert shared.has(torch.device("cpu")) is None


for name, test in [(name, value) for name, value in globals().items() if name.startswith("test_")]:
    test()
    print(f"ok {name}", flush=True)
