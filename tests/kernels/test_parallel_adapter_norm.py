"""parallel_adapter_norm against float64: every backend, every gradient, odd sizes, tasks by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.testing import assert_as_good_as_eager, nan_poisoned, threads

needs_cpp = pytest.mark.skipif(not native.available(), reason="the C++ library is not built")
ISAS = list(native.ISA_NAMES)


def make(batch, tokens, width, inner, ranks, *, biases=True, scale=None, residual=True, norm="layer"):
    """Random arguments in float64, rounded later to the dtype under test."""

    def r(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    args = {
        "x": r(batch, tokens, width),
        "h": r(batch, tokens, inner),
        "down": [r(k, inner) * inner**-0.5 for k in ranks],
        "up": [r(width, k) * k**-0.5 for k in ranks],
    }
    if biases:
        args |= {"down_bias": [0.1 * r(k) for k in ranks], "up_bias": [0.1 * r(width) for _ in ranks]}
    if scale is not None:
        args["scale"] = [1 + 0.1 * r(1 if scale == "number" else width) for _ in ranks]
    if residual:
        args["residual"] = r(batch, tokens, width)
    if norm:
        args |= {"norm_weight": 1 + 0.1 * r(width), "norm_bias": 0.1 * r(width)}
    return args


def cast(args, dtype, requires_grad=False):
    def one(tensor):
        return tensor.detach().to(dtype).clone().requires_grad_(requires_grad)

    return {k: [one(t) for t in v] if isinstance(v, list) else one(v) for k, v in args.items()}


def flat(args):
    return {
        f"{name}[{i}]" if isinstance(value, list) else name: tensor
        for name, value in args.items()
        for i, tensor in enumerate(value if isinstance(value, list) else [value])
    }


def run(args, batch, backend, dtype, grad, **options):
    """The result and every gradient, by name."""
    args = cast(args, dtype, requires_grad=True)
    leaves = flat(args)
    rest = {k: v for k, v in args.items() if k not in ("x", "h", "down", "up")}
    with hk.use_backend(backend):
        out = hk.parallel_adapter_norm(args["x"], args["h"], args["down"], args["up"], batch, **rest, **options)
        grads = torch.autograd.grad(out, list(leaves.values()), grad.to(dtype), allow_unused=True)
    return {"out": out.detach()} | dict(zip(leaves, grads, strict=True))


def rounded(args, dtype):
    return cast(cast(args, dtype), torch.float64)


def compare(args, ids, backend, dtype, **options):
    tasks = len(args["down"])
    rows = args["x"].shape[0]
    batch = hk.TaskBatch.single(rows) if ids is None else hk.TaskBatch.from_ids(ids, tasks)
    args = rounded(args, dtype)
    grad = torch.randn(args["x"].shape, dtype=torch.float64).to(dtype)
    with nan_poisoned():
        ours = run(args, batch, backend, dtype, grad, **options)
    eager = run(args, batch, "reference", dtype, grad, **options)
    exact = run(args, batch, "reference", torch.float64, grad, **options)
    # Of a gradient of a few numbers, eager's error is luck: those of all tasks are judged as one.
    few = [n for n, e in exact.items() if e is not None and 1 < e.numel() < 16 and e.abs().max() > 0]
    for kind in {n.partition("[")[0] for n in few}:
        pool = [n for n, e in exact.items() if n.partition("[")[0] == kind and e is not None]
        assert_as_good_as_eager(*(torch.cat([r[n].flatten() for n in pool]) for r in (ours, eager, exact)), kind)
    for name, expected in ((n, e) for n, e in exact.items() if n not in few):
        if expected is None or expected.abs().max() == 0:
            # The norm of a single element is constant; 1 / sqrt(eps) = 316 multiplies what rounding leaves.
            noise = 400 * torch.finfo(dtype).eps if args["x"].shape[-1] == 1 else 0.0
            assert ours[name] is None or ours[name].abs().max() <= noise, name
        elif expected.numel() == 1:
            # One number out of a long sum with cancellation: eager's own error is luck, so the terms set the scale.
            terms = 1 + exact["out"].norm() * grad.double().norm()
            assert (ours[name].double() - expected).abs() <= 4 * torch.finfo(dtype).eps * terms, name
        else:
            assert_as_good_as_eager(ours[name], eager[name], expected, name)


SHAPES = {
    "one task, rank 8": ((4, 9, 64, 64, [8]), None),
    "one task, rank 24": ((3, 25, 96, 80, [24]), None),
    "one element": ((1, 1, 1, 1, [1]), None),
    "primes": ((3, 7, 37, 53, [13]), None),
    "two tasks, rank 300 and 3, many rows": ((3, 260, 70, 33, [300, 3]), [0, 1, 0]),
    "mixed ranks, unsorted, rows and a task without": ((6, 7, 70, 33, [5, 24, 65, 2]), [2, 0, -1, 2, 0, 1]),
    "one row a task": ((3, 5, 40, 48, [4, 8, 16]), [2, 1, 0]),
    "no row has a task": ((2, 3, 20, 16, [4, 4]), [-1, -1]),
    "one token a row": ((9, 1, 72, 72, [8, 8]), [1, 0, 1, 1, -1, 0, 1, 0, 0]),
    "more rows than a block": ((2, 130, 80, 64, [40]), None),
}


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_forward_and_every_gradient_are_as_exact_as_eager(isa, shape, dtype):
    torch.manual_seed(1)
    sizes, ids = SHAPES[shape]
    if native.ISA_NAMES.index(isa) > torch.ops.hfadapt_cpu.isa(-1):
        pytest.skip(f"this processor has no {isa}")
    with native.use_isa(isa):
        compare(make(*sizes, scale="vector"), ids, "cpu", dtype, norm="layer", activation="gelu")


@needs_cpp
def test_large_ranks_are_as_exact_as_eager():
    torch.manual_seed(1)
    compare(make(3, 45, 70, 65, [260, 12]), [1, 0, 0], "cpu", torch.float32, norm="layer", activation="gelu")


@needs_cpp
@pytest.mark.parametrize("activation", sorted(hk.ACTIVATIONS))
@pytest.mark.parametrize("norm", [None, "layer", "rms"])
def test_every_activation_and_norm(norm, activation):
    torch.manual_seed(2)
    args = make(4, 5, 48, 40, [6, 17], norm=norm, scale="number", residual=norm != "rms")
    offset = 1.0 if norm == "rms" else 0.0
    compare(args, [1, 0, -1, 0], "cpu", torch.float32, norm=norm, activation=activation, norm_offset=offset)


@needs_cpp
@pytest.mark.parametrize("scale", [0.5, [0.5, -2.0]], ids=["one number", "one a task"])
def test_fixed_scales_without_biases(scale):
    torch.manual_seed(3)
    compare(make(3, 4, 32, 24, [4, 9], biases=False), [1, 0, 1], "cpu", torch.float32, norm="layer", scale=scale)


@needs_cpp
def test_dropout_replays_the_reference_mask_in_forward_and_backward():
    torch.manual_seed(4)
    options = {"dropout": 0.3, "training": True, "seed": torch.tensor([123456789012345]), "norm": "layer"}
    compare(make(4, 6, 40, 32, [8, 20]), [1, 0, -1, 1], "cpu", torch.float32, **options)


@needs_cpp
def test_float16_is_computed_in_float32():
    torch.manual_seed(5)
    args = rounded(make(2, 3, 32, 32, [8]), torch.float16)
    grad = torch.randn(2, 3, 32).half()
    batch = hk.TaskBatch.single(2)
    ours = run(args, batch, "cpu", torch.float16, grad, norm="layer")
    exact = run(args, batch, "reference", torch.float64, grad, norm="layer")
    for name, expected in exact.items():
        assert ours[name].dtype == torch.float16
        assert (ours[name].double() - expected).norm() <= 1e-3 * expected.norm(), name


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpp)])
def test_rows_without_a_task_are_x_bit_for_bit_and_others_do_not_see_their_neighbours(backend):
    torch.manual_seed(6)
    args = cast(make(5, 3, 40, 24, [8, 24], norm=None, residual=False), torch.float32)
    args["x"][1, 0, 0] = -0.0

    def call(rows, ids):
        with hk.use_backend(backend):
            return hk.parallel_adapter_norm(
                args["x"][rows], args["h"][rows], args["down"], args["up"], hk.TaskBatch.from_ids(ids, 2)
            )

    ids = [0, -1, 1, 0, -1]
    mixed = call(slice(0, 5), ids)
    for row in (1, 4):
        assert torch.equal(mixed[row].view(torch.int32), args["x"][row].view(torch.int32))
    if backend == "cpu":
        for row in range(5):
            assert torch.equal(mixed[row], call(slice(row, row + 1), [ids[row]])[0])


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_again_and_with_two_threads(dtype):
    torch.manual_seed(7)
    args = make(6, 50, 72, 64, [8, 40], scale="number")
    batch = hk.TaskBatch.from_ids([1, 0, 1, -1, 0, 0], 2)
    grad = torch.randn(6, 50, 72).to(dtype)
    results = []
    for count in (1, 1, 2):
        with threads(count):
            results.append(run(args, batch, "cpu", dtype, grad, norm="layer"))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])


@needs_cpp
def test_inputs_with_any_strides_are_read_right_and_left_unchanged():
    torch.manual_seed(8)
    args = cast(make(3, 4, 24, 20, [5]), torch.float32)
    batch = hk.TaskBatch.single(3)
    options = {k: v for k, v in args.items() if k not in ("x", "h", "down", "up")} | {"norm": "layer"}
    with hk.use_backend("cpu"):
        plain = hk.parallel_adapter_norm(args["x"], args["h"], args["down"], args["up"], batch, **options)
        x = args["x"].transpose(0, 1).contiguous().transpose(0, 1)
        h = torch.stack([args["h"], args["h"]], -1)[..., 0]
        down = [args["down"][0].t().contiguous().t()]
        before = [t.clone() for t in (x, h, down[0])]
        strided = hk.parallel_adapter_norm(x, h, down, args["up"], batch, **options)
    assert torch.equal(plain, strided)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, h, down[0]), strict=True))


@needs_cpp
def test_h_may_be_x_itself_and_rank_two_inputs_follow_an_expanded_batch():
    torch.manual_seed(9)
    args = cast(make(3, 4, 24, 24, [5, 6], norm=None, residual=False), torch.float64)
    batch = hk.TaskBatch.from_ids([1, -1, 0], 2)
    x = args["x"].float().requires_grad_()
    with hk.use_backend("cpu"):
        out = hk.parallel_adapter_norm(x, x, [d.float() for d in args["down"]], [u.float() for u in args["up"]], batch)
        (grad,) = torch.autograd.grad(out.sum(), x)
        flat_out = hk.parallel_adapter_norm(
            x.view(12, 24), x.view(12, 24), [d.float() for d in args["down"]], [u.float() for u in args["up"]],
            batch.expand(4),
        )  # fmt: skip
    exact_x = x.detach().double().requires_grad_()
    exact = hk.parallel_adapter_norm(exact_x, exact_x, args["down"], args["up"], batch)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_x)
    torch.testing.assert_close(grad.double(), exact_grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(out.view(12, 24), flat_out)


def test_a_task_without_rows_gets_no_gradient():
    args = cast(make(2, 3, 16, 16, [4, 4]), torch.float32, requires_grad=True)
    out = hk.parallel_adapter_norm(args["x"], args["h"], args["down"], args["up"], hk.TaskBatch.from_ids([1, 1], 2))
    out.sum().backward()
    assert args["down"][0].grad is None
    assert args["down"][1].grad is not None


@pytest.mark.parametrize("norm", [None, "layer"])
def test_an_empty_batch_and_no_tasks(norm):
    x, h = torch.randn(0, 3, 8), torch.randn(0, 3, 4)
    down, up = [torch.randn(2, 4)], [torch.randn(8, 2)]
    out = hk.parallel_adapter_norm(
        x, h, down, up, hk.TaskBatch.from_ids(torch.zeros(0, dtype=torch.int64), 1), norm=norm
    )
    assert out.shape == (0, 3, 8)
    x, h = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    out = hk.parallel_adapter_norm(x, h, [], [], hk.TaskBatch.from_ids([-1, -1], 0), norm=norm)
    expected = x if norm is None else torch.nn.functional.layer_norm(x, (8,))
    assert torch.equal(out, expected)


@needs_cpp
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_equals_the_reference(data):
    size = st.integers(1, 40)
    batch, tokens, width, inner = (data.draw(size) for _ in range(4))
    ranks = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=4))
    ids = data.draw(st.lists(st.integers(-1, len(ranks) - 1), min_size=batch, max_size=batch))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    norm = data.draw(st.sampled_from([None, "layer", "rms"]))
    args = make(batch, tokens, width, inner, ranks, norm=norm)
    grad = torch.randn(batch, tokens, width)
    rows = hk.TaskBatch.from_ids(ids, len(ranks))
    ours = run(args, rows, "cpu", torch.float32, grad, norm=norm, activation="gelu", eps=1e-2)
    exact = run(args, rows, "reference", torch.float64, grad, norm=norm, activation="gelu", eps=1e-2)
    for name, expected in exact.items():
        if expected is not None:
            torch.testing.assert_close(ours[name].double(), expected, atol=2e-4, rtol=2e-4, msg=name)


def op_arguments(dtype=torch.float32):
    args = cast(make(3, 4, 24, 20, [5, 9], scale="number"), dtype, requires_grad=True)
    ids = torch.tensor([1, -1, 0])
    return (
        args["x"], args["residual"], args["h"], args["down"], args["up"], args["down_bias"], args["up_bias"],
        args["scale"], [], args["norm_weight"], args["norm_bias"], ids, None, 2, 1, 1e-5, 0.0, 0.0, True,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpp)])
def test_opcheck(backend):
    torch.manual_seed(10)
    with hk.use_backend(backend):
        torch.library.opcheck(torch.ops.hfadapt.parallel_adapter_norm.default, op_arguments())


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpp)])
def test_compiles_without_graph_breaks_and_gives_the_same_gradients(backend):
    torch.manual_seed(11)
    args = cast(make(3, 4, 24, 20, [5, 9], scale="number"), torch.float32, requires_grad=True)
    ids = torch.tensor([1, -1, 0])

    def f(x, h, ids):
        batch = hk.TaskBatch.from_ids(ids, 2)
        return hk.parallel_adapter_norm(
            x, h, args["down"], args["up"], batch, down_bias=args["down_bias"], scale=args["scale"], norm="layer",
            norm_weight=args["norm_weight"], residual=args["residual"], activation="gelu",
        )  # fmt: skip

    leaves = [args["x"], args["h"], *args["down"], *args["up"], *args["down_bias"], *args["scale"]]
    with hk.use_backend(backend):
        expected = torch.autograd.grad(f(args["x"], args["h"], ids).square().sum(), leaves)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(args["x"], args["h"], ids).square().sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpp)])
def test_autocast_computes_and_returns_bfloat16_and_gradients_come_back_in_float32(backend):
    torch.manual_seed(12)
    args = cast(make(2, 3, 24, 20, [5]), torch.float32, requires_grad=True)
    with hk.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = hk.parallel_adapter_norm(args["x"], args["h"], args["down"], args["up"], hk.TaskBatch.single(2))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert args["x"].grad.dtype == args["down"][0].grad.dtype == torch.float32


@needs_cpp
def test_gradients_of_gradients_are_refused_by_the_fused_path_and_right_in_the_reference():
    args = cast(make(2, 2, 8, 8, [3], norm=None, residual=False), torch.float64, requires_grad=True)

    def first(dtype):
        x = args["x"].detach().to(dtype).requires_grad_()
        down, up = [d.to(dtype) for d in args["down"]], [u.to(dtype) for u in args["up"]]
        h = args["h"].to(dtype)
        out = hk.parallel_adapter_norm(x, h, down, up, hk.TaskBatch.single(2), activation="tanh")
        return torch.autograd.grad(out.square().sum(), [args["h"]], create_graph=True)[0]

    with hk.use_backend("cpu"), pytest.raises(hk.DoubleBackwardError, match="cannot be differentiated again"):
        first(torch.float32).sum().backward()
    with hk.use_backend("reference"):
        first(torch.float64).sum().backward()


def test_the_reference_passes_gradcheck():
    torch.manual_seed(13)
    args = cast(make(3, 2, 5, 4, [2, 3], scale="vector"), torch.float64, requires_grad=True)
    batch = hk.TaskBatch.from_ids([1, -1, 0], 2)
    leaves = flat(args)

    def f(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        lists = {k: [named[f"{k}[{t}]"] for t in range(2)] for k, v in args.items() if isinstance(v, list)}
        rest = {k: named[k] for k in ("residual", "norm_weight", "norm_bias")}
        down, up = lists.pop("down"), lists.pop("up")
        return hk.parallel_adapter_norm(named["x"], named["h"], down, up, batch, norm="layer", activation="gelu",
                                        **lists, **rest)  # fmt: skip

    with hk.use_backend("reference"):
        assert torch.autograd.gradcheck(f, list(leaves.values()))


BAD = {
    "h": (lambda a: a.update(h=a["h"][:, :2]), "h: expected"),
    "down": (lambda a: a.update(down=[a["down"][0][:, :3]]), r"down\[0\]: expected"),
    "up": (lambda a: a.update(up=[a["up"][0][:3]]), r"up\[0\]: expected"),
    "count": (lambda a: a.update(up=a["up"] * 2), r"up: expected one tensor a task \(1\), got 2"),
    "dtype": (lambda a: a.update(h=a["h"].double()), "h: expected torch.float32 on cpu"),
    "residual": (lambda a: a.update(residual=a["residual"][:1]), "residual: expected"),
    "norm": (lambda a: a.update(norm="batch"), "norm: expected None, 'layer' or 'rms', got 'batch'"),
    "activation": (lambda a: a.update(activation="mish"), "activation is unknown"),
    "dropout": (lambda a: a.update(dropout=1.0), "0 <= dropout < 1"),
    "scale": (lambda a: a.update(scale=[1.0, 2.0]), "scale: expected one number or 1 entries"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_refused_by_name(what):
    args = cast(make(2, 3, 8, 6, [4]), torch.float32) | {"norm": "layer"}
    change, message = BAD[what]
    change(args)
    x, h, down, up = (args.pop(k) for k in ("x", "h", "down", "up"))
    with pytest.raises(hk.KernelError, match=message):
        hk.parallel_adapter_norm(x, h, down, up, hk.TaskBatch.single(2), **args)


@needs_cpp
def test_ids_out_of_range_never_reach_memory():
    args = list(op_arguments())
    args[11] = torch.tensor([1, 7, 0])
    with torch.no_grad(), hk.use_backend("cpu"), pytest.raises(hk.RowIdError, match=r"ids\[1\].*0..1, got 7"):
        torch.ops.hfadapt.parallel_adapter_norm(*args)
    with torch.no_grad(), hk.use_backend("reference"), pytest.raises(hk.RowIdError, match=r"ids\[1\]"):
        torch.ops.hfadapt.parallel_adapter_norm(*args)
