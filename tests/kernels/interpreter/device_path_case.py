"""What the ops do on a device beside arithmetic, counted in the interpreter; started by run_cases.py.

Every op runs twice with the same adapters, the second time with a new batch. Then nothing may be copied from the host
or read back, forward and backward, and kernels are launched as few times as the ops' pages say.
"""

from __future__ import annotations

import torch
from device_path import Counts, watched
from torch import nn

import hfadapt_kernels as hk
from hfadapt_kernels import batch
from hfadapt_kernels.testing import launches, rel_error
from hfadapt_kernels.triton import order, tables

IDS = [1, -1, 0, 1]
ROWS, TOKENS, WIDE, TASKS = len(IDS), 3, 20, 2
RANKS = (5, 3)


def weights(*shapes):
    return [nn.Parameter(torch.randn(shape) / 4) for shape in shapes]


def inputs(*shape):
    return torch.randn(shape, requires_grad=True)


class Norm:
    limits, steps = (1, 3), {"adapter_norm_fwd_kernel", "adapter_norm_bwd_kernel", "task_products_kernel"}

    def __init__(self, scale=((WIDE,), (WIDE,))):
        self.x = inputs(ROWS, TOKENS, WIDE)
        self.lists = [weights(*((r, WIDE) for r in RANKS)), weights(*((WIDE, r) for r in RANKS))]
        self.lists += [weights(*((r,) for r in RANKS)), weights(*((WIDE,) for _ in RANKS))]
        self.lists.append(weights(*scale))
        self.norm = weights((WIDE,), (WIDE,))

    def leaves(self):
        return [self.x, *(w for ws in self.lists for w in ws), *self.norm]

    def run(self, rows):
        down, up, down_bias, up_bias, scale = self.lists
        return hk.parallel_adapter_norm(
            self.x, self.x, down, up, rows, down_bias=down_bias, up_bias=up_bias, activation="gelu", norm="layer",
            scale=scale, norm_weight=self.norm[0], norm_bias=self.norm[1],
        )  # fmt: skip


class Numbers(Norm):
    steps = Norm.steps | {"adapter_norm_sums_kernel"}

    def __init__(self):
        super().__init__(((1,), (1,)))


class Mixed(Norm):
    # A number beside vectors is spread out by a launch of its own.
    limits = (2, 4)

    def __init__(self):
        super().__init__(((WIDE,), (1,)))


class Lora:
    limits, steps = (1, 3), {"lora_rows_kernel", "task_products_kernel", "lora_scales_kernel"}

    def __init__(self):
        self.x = inputs(ROWS, TOKENS, WIDE)
        self.a, self.b = weights(*((r, WIDE) for r in RANKS)), weights(*((7, r) for r in RANKS))
        self.scale = weights((1,), (1,))

    def leaves(self):
        return [self.x, *self.a, *self.b, *self.scale]

    def run(self, rows):
        seed = torch.full((1,), 5)
        return hk.grouped_lora(self.x, self.a, self.b, self.scale, rows, dropout=0.3, training=True, seed=seed)


class Linear(Lora):
    # The base's product is torch's own.
    limits, steps = (2, 4), {"lora_rows_kernel", "task_products_kernel"}

    def __init__(self):
        super().__init__()
        self.weight, self.bias = weights((7, WIDE), (7,))
        self.weight.requires_grad_(False)

    def run(self, rows):
        return hk.lora_linear(self.x, self.weight, self.bias, self.a, self.b, [0.5, 2.0], rows)

    def leaves(self):
        return [self.x, *self.a, *self.b]


class Prefix:
    limits, steps = (1, None), {"prefix_attention_fwd_kernel"}

    def __init__(self):
        self.qkv = [inputs(ROWS, 2, TOKENS, 8) for _ in range(3)]
        self.prefix = [weights((2, 3, 8), (2, 5, 8)) for _ in range(2)]

    def leaves(self):
        return [*self.qkv, *self.prefix[0], *self.prefix[1]]

    def run(self, rows):
        return hk.prefix_attention(*self.qkv, *self.prefix, rows)


class Fusion:
    # One launch writes where the bottlenecks of this forward lie.
    limits, steps = (None, None), {"adapter_fusion_fwd_kernel", "adapter_fusion_bwd_kernel", "numbers_kernel"}

    def __init__(self):
        self.x, self.hidden = inputs(ROWS, TOKENS, WIDE), [inputs(ROWS, TOKENS, r) for r in RANKS]
        self.up, self.square = weights(*((WIDE, r) for r in RANKS)), weights(*((WIDE, WIDE) for _ in range(3)))

    def leaves(self):
        return [self.x, *self.hidden, *self.up, *self.square]

    def run(self, rows):
        q, k, v = self.square
        hidden = [z * 1.0 for z in self.hidden]
        return hk.adapter_fusion(self.x, hidden, self.up, None, [1.0] * TASKS, q, None, k, None, v)


class Pal:
    limits, steps = (None, None), {"pal_linear_kernel", "task_products_kernel"}

    def __init__(self):
        self.x = inputs(ROWS, TOKENS, WIDE)
        shapes = {"encoder": (8, WIDE), "query": (8, 8), "key": (8, 8), "value": (8, 8), "decoder": (WIDE, 8)}
        shapes |= {"encoder_bias": (8,), "decoder_bias": (WIDE,)}
        self.weights = {name: weights(shape, shape) for name, shape in shapes.items()}

    def leaves(self):
        return [self.x, *(w for ws in self.weights.values() for w in ws)]

    def run(self, rows):
        return hk.pal_attention(self.x, num_heads=2, batch=rows, **self.weights)


class Frozen:
    limits, steps = (1, 1), {"frozen_linear_kernel"}

    def __init__(self):
        self.x, self.packed = inputs(ROWS, TOKENS, WIDE), hk.PackedLinear(torch.randn(7, WIDE), "float32")

    def leaves(self):
        return [self.x]

    def run(self, rows):
        return hk.frozen_linear(self.x, self.packed)


OPS = (Norm, Numbers, Mixed, Lora, Linear, Prefix, Fusion, Pal, Frozen)


def step(case, rows, grad=None):
    """Result and gradients; ``grad`` is that of the result."""
    out = case.run(rows)
    grad = torch.ones_like(out) if grad is None else grad
    found = torch.autograd.grad(out, case.leaves(), grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for g, t in zip(found, case.leaves(), strict=True))]


def equal(case, rows, found):
    with hk.use_backend("reference"):
        wanted = step(case, rows)
    for i, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert rel_error(ours, theirs) < 1e-5, (type(case).__name__, i, rel_error(ours, theirs))


def counted(case, rows):
    with watched() as counts:
        out = case.run(rows)
        forward = Counts(list(counts.transfers), list(counts.computed), list(counts.launched))
        grad = torch.ones_like(out)
        for seen in (counts.transfers, counts.computed, counts.launched):
            seen.clear()
        torch.autograd.grad(out, case.leaves(), grad, allow_unused=True)
    return forward, counts


def test_nothing_is_copied_or_read_back_and_launches_are_few(kind):
    torch.manual_seed(0)
    case, rows = kind(), hk.TaskBatch.from_ids(IDS, TASKS)
    with hk.use_backend("triton"):
        equal(case, rows, step(case, rows))
    ids = torch.tensor(IDS)
    with watched() as counts:
        fresh = hk.TaskBatch.from_ids(ids, TASKS)
    assert not counts.transfers, counts.transfers
    forward, backward = counted(case, fresh)
    assert not forward.transfers and not backward.transfers, (forward, backward)
    assert kind.steps <= {*forward.launched, *backward.launched}
    for seen, limit in zip((forward, backward), kind.limits, strict=True):
        # The rows of a batch are sorted once for all layers.
        own = [name for name in seen.launched if name != "order_kernel"]
        assert limit is None or len(own) + len(seen.computed) <= limit, (kind.__name__, seen)


def test_the_counts_see_every_way_of_copying_and_reading():
    x = torch.ones(3)
    ways = (
        lambda: x.sum().item(), x.tolist, x.cpu, lambda: torch.tensor([1.0, 2.0]), lambda: float(x[0]),
        lambda: bool(x[0] > 0), lambda: torch.as_tensor([1]), lambda: x.new_tensor([1.0]), lambda: x.nonzero(),
        lambda: x.to("meta"),
    )  # fmt: skip
    for way in ways:
        with watched() as counts:
            way()
        assert counts.transfers


def test_a_table_is_never_out_of_date():
    torch.manual_seed(0)
    case, rows = Norm(), hk.TaskBatch.from_ids(IDS, TASKS)

    def check():
        with hk.use_backend("triton"):
            equal(case, rows, step(case, rows))

    check()
    held = [w.data for ws in case.lists for w in ws]  # so that no new tensor comes to lie where an old one lay
    for ws in case.lists:  # changed in place, as optimizers do
        for w in ws:
            w.data.mul_(1.5)
    check()
    for ws in case.lists:  # moved, as `module.to` does
        for w in ws:
            w.data = w.data.clone()
    check()
    case.lists = [weights(*(w.shape for w in ws)) for ws in case.lists]  # replaced
    check()
    case.lists = [ws[::-1] for ws in case.lists]  # the set in another order
    check()
    for ws in case.lists:  # a task more
        ws += weights(ws[0].shape)
    rows = hk.TaskBatch.from_ids([2, 0, -1, 1], 3)
    check()
    case.lists = [[w.detach().bfloat16().float().requires_grad_() for w in ws] for ws in case.lists]  # cast
    check()
    assert held


def test_the_order_follows_ids_that_change_in_place():
    torch.manual_seed(0)
    case, ids = Lora(), torch.tensor(IDS)
    rows = hk.TaskBatch.from_ids(ids, TASKS)
    with hk.use_backend("triton"):
        for change in ([1, 0, 1, 0], [0, 0, 0, -1]):
            equal(case, rows, step(case, rows))
            ids.copy_(torch.tensor(change))
        ids[2] = TASKS
        with_error = None
        try:
            step(case, rows)
        except hk.RowIdError as error:
            with_error = str(error)
        assert with_error is not None and "ids[2]" in with_error
    rows = hk.TaskBatch.from_ids([0, 1, 1, -1, 0, 1, 0], 3)
    for found, wanted in zip(order.task_order(rows.ids.device, rows.ids, 3, eager=True), rows.order(), strict=True):
        assert torch.equal(found, wanted)


def test_weights_that_autocast_casts_have_one_table():
    torch.manual_seed(0)
    case, rows = Linear(), hk.TaskBatch.from_ids(IDS, TASKS)

    def both():
        with hk.use_backend("triton"), torch.autocast("cpu", torch.bfloat16):
            out = case.run(rows)
        return out, torch.autograd.grad(out, case.leaves(), torch.ones_like(out), allow_unused=True)

    (first, grads), kept = both(), len(tables._TABLES)
    between = [torch.empty(64) for _ in range(9)]  # so that the next casts lie elsewhere
    again, same = both()
    assert torch.equal(first, again) and all(map(torch.equal, grads, same)) and between
    assert len(tables._TABLES) == kept
    # A task without rows has no gradient, cast or not.
    alone = hk.TaskBatch.from_ids([1] * ROWS, TASKS)
    with hk.use_backend("triton"), torch.autocast("cpu", torch.bfloat16):
        out = hk.grouped_lora(case.x, case.a, case.b, 1.0, alone)
    found = torch.autograd.grad(out.sum(), case.a, allow_unused=True)
    assert found[0] is None and found[1] is not None and found[1].dtype == torch.float32


def test_one_batch_is_sorted_once_for_all_layers():
    torch.manual_seed(0)
    layers, rows = [Lora(), Norm(), Lora()], hk.TaskBatch.from_ids(IDS, TASKS)
    with hk.use_backend("triton"), launches() as names:
        for case in layers:
            step(case, rows)
    assert names.count("order_kernel") == 1


def test_what_a_graph_records_is_written_and_sorted_inside_of_it():
    torch.manual_seed(0)
    plain = tables.capturing
    tables.capturing = order.capturing = lambda device: True
    try:
        for kind in (Norm, Lora, Prefix, Fusion):
            case, rows = kind(), hk.TaskBatch.from_ids(IDS, TASKS)
            kept = len(tables._TABLES)
            with hk.use_backend("triton"):
                equal(case, rows, step(case, rows))
            assert len(tables._TABLES) == kept
    finally:
        tables.capturing = order.capturing = plain


def test_ids_out_of_range_on_a_device_are_asserted_there():
    on_host, batch.on_host = batch.on_host, lambda ids: False
    try:
        hk.TaskBatch.from_ids([TASKS], TASKS)
    except RuntimeError as error:
        assert "TaskBatch" in str(error) and "ids.cpu()" in str(error)
    else:
        raise AssertionError("taken")
    finally:
        batch.on_host = on_host


for kind in OPS:
    test_nothing_is_copied_or_read_back_and_launches_are_few(kind)
    print(f"ok counts of {kind.__name__}", flush=True)
for name, test in [(name, value) for name, value in globals().items() if name.startswith("test_")]:
    if name != test_nothing_is_copied_or_read_back_and_launches_are_few.__name__:
        test()
        print(f"ok {name}", flush=True)
