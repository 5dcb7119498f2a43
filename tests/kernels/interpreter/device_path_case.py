"""What the ops do on a device beside arithmetic, counted in the interpreter; started by run_cases.py.

Every op runs twice with the same adapters, the second time with a new batch. Then nothing may be copied from the host
or read back, forward and backward, and kernels are launched as few times as the ops' pages say.
"""

from __future__ import annotations

import torch
from device_path import Counts, watched
from small_calls import IDS, OPS, ROWS, TASKS, Linear, Lora, Norm, equal, step, weights

import hfadapt_kernels as hk
from hfadapt_kernels import batch
from hfadapt_kernels.testing import launches
from hfadapt_kernels.triton import order, tables


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
        for kind in OPS:
            case, ids = kind(), torch.tensor(IDS)
            rows = hk.TaskBatch.from_ids(ids, TASKS)
            kept = len(tables._TABLES)
            # No run before this one: a graph cannot copy from the host, whatever is new to it.
            for seen in counted(case, rows):
                assert not seen.transfers, (kind.__name__, seen.transfers)
            for change in (IDS, [0, 0, 1, -1]):  # as between replays
                ids.copy_(torch.tensor(change))
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
