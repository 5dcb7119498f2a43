"""pal_attention: forward and every gradient against float64, on every backend that runs here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hfadapt_kernels as hk
from hfadapt_kernels import native, pal_attention
from hfadapt_kernels.dropout import keep_scale
from hfadapt_kernels.testing import (
    assert_as_good_as_eager,
    assert_as_good_as_eager_nearby,
    nan_poisoned,
    rel_error,
    threads,
)

BACKENDS = ["reference"] + (["cpu"] if native.available() else [])
IDS = [1, -1, 0, 1, 2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    "encoder": "sd", "query": "ss", "key": "ss", "value": "ss", "decoder": "ds", "output": "ss", "encoder_bias": "s",
    "query_bias": "s", "key_bias": "s", "value_bias": "s", "decoder_bias": "d", "output_bias": "s",
}  # fmt: skip
REQUIRED = list(SHAPES)[:5]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with hk.use_backend(request.param):
        yield request.param


def make(ids, tokens, dim, size, names=tuple(SHAPES), dtype=torch.float32):
    """x, a gradient, and one weight a task of every name."""
    g = torch.Generator().manual_seed(0)
    tasks = max(max(ids), 0) + 1

    def randn(letters):
        shape = [{"s": size, "d": dim}[letter] for letter in letters]
        spread = shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        return (torch.randn(shape, generator=g, dtype=torch.float64) * spread * 1.5).to(dtype)

    x, grad = (torch.randn(len(ids), tokens, dim, generator=g).to(dtype) for _ in range(2))
    return x, grad, {name: [randn(SHAPES[name]) for _ in range(tasks)] for name in names}


def eager(x, weights, ids, heads, mask=None, causal=False, activation="identity", dropout=0.0, seed=None):
    """One row after the other, one product after the other."""
    rows = []
    _, tokens, _ = x.shape
    for row, task in enumerate(ids):
        if task < 0:
            rows.append(torch.zeros_like(x[row]))
            continue
        w = {name: own[task] for name, own in weights.items()}

        def linear(name, value, w=w):
            return F.linear(value, w[name], w.get(f"{name}_bias"))

        low = linear("encoder", x[row])
        q, k, v = (linear(n, low).view(tokens, heads, -1).transpose(0, 1) for n in ("query", "key", "value"))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if mask is not None and mask.dtype == torch.bool:
            scores = scores + torch.zeros(mask.shape).masked_fill(~mask, -1e4)[row if len(mask) > 1 else 0].to(x.dtype)
        elif mask is not None:
            scores = scores + mask[row if len(mask) > 1 else 0].to(x.dtype)
        if causal:
            scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), float("-inf"))
        probabilities = scores.softmax(-1)
        if dropout:
            position = (row * heads + torch.arange(heads).view(-1, 1, 1)) * tokens + torch.arange(tokens).view(-1, 1)
            probabilities = probabilities * keep_scale(seed, position, torch.arange(tokens), dropout, x.dtype)
        mixed = (probabilities @ v).transpose(0, 1).reshape(tokens, -1)
        if "output" in w:
            mixed = linear("output", mixed)
        rows.append(hk.get_activation(activation).fn(linear("decoder", mixed)))
    return torch.stack(rows)


def run(fn, tensors, dtype, grad):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = fn(leaves)
    grads = [None] * len(leaves)
    if out.requires_grad:
        grads = torch.autograd.grad(out, leaves, grad.to(out.dtype), allow_unused=True)
    return [out, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))]


def check_all(ids, tokens, dim, size, heads, dtype, names=tuple(SHAPES), **options):
    """Forward and every gradient within twice the error of eager, all of a kind taken together.

    The problems are small, and the few rows where attention is sharp make most of their errors: hence "nearby".
    """
    x, grad, weights = make(ids, tokens, dim, size, names, dtype)
    tasks = len(weights["encoder"])
    batch, seed = hk.TaskBatch.from_ids(ids, tasks), torch.tensor([987654321987])
    dropout = options.get("dropout", 0.0)

    def named(leaves):
        return {name: leaves[1 + i * tasks : 1 + (i + 1) * tasks] for i, name in enumerate(names)}

    def ours(leaves):
        extra = {"seed": seed, "training": True} if dropout else {}
        return pal_attention(leaves[0], **named(leaves), batch=batch, num_heads=heads, **extra, **options)

    def naive(leaves):
        mask = options.get("mask")
        wide = options if mask is None or mask.dim() == 4 else options | {"mask": mask[:, None, None, :]}
        return eager(leaves[0], named(leaves), ids, heads, seed=seed, **wide)

    tensors = [x, *(t for own in weights.values() for t in own)]
    before = [t.clone() for t in tensors]
    with nan_poisoned():
        got = run(ours, tensors, dtype, grad)
    groups = {"out": [0], "x": [1]} | {n: range(2 + i * tasks, 2 + (i + 1) * tasks) for i, n in enumerate(names)}
    if (part := groups.pop("key_bias", None)) is not None:
        # The same for every key, so softmax does not see it: the gradient is 0 up to rounding.
        largest = max(g.norm() for g in got[2:])
        assert torch.stack([got[i].norm() for i in part]).norm() <= 100 * torch.finfo(dtype).eps * largest
    assert_as_good_as_eager_nearby(got, lambda leaves: run(naive, leaves, leaves[0].dtype, grad), tensors, groups)
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("ids", "tokens", "dim", "size", "heads"),
    [(IDS, 7, 40, 24, 2), ([0], 1, 5, 3, 1), ([0, 0], 33, 48, 36, 3), ([2, 0, 1], 17, 64, 34, 1), (IDS, 5, 70, 68, 2)],
    ids=["mixed", "tiny", "uniform", "unsorted", "head-of-34"],
)  # fmt: skip
def test_result_and_every_gradient_are_as_good_as_eager(backend, dtype, ids, tokens, dim, size, heads):
    check_all(ids, tokens, dim, size, heads, dtype, activation="gelu")


@pytest.mark.parametrize("activation", sorted(hk.ACTIVATIONS))
def test_every_activation(backend, activation):
    check_all(IDS, 6, 32, 16, 2, torch.float32, activation=activation)


@pytest.mark.parametrize("names", [REQUIRED, [*REQUIRED, "decoder_bias", "output"]], ids=["plain", "output"])
def test_biases_and_output_projection_are_optional(backend, names):
    check_all(IDS, 6, 32, 16, 2, torch.float32, names=tuple(names))


def masks(batch, tokens):
    g = torch.Generator().manual_seed(3)
    keep = torch.rand(batch, tokens, generator=g) > 0.3
    keep[:, 0] = True
    return {
        "keys": keep,
        "keys-4d": keep[:, None, None, :],
        "square": (torch.rand(batch, 1, tokens, tokens, generator=g) > 0.3) | torch.eye(tokens, dtype=torch.bool),
        "additive-keys": torch.zeros(batch, 1, 1, tokens).masked_fill(~keep[:, None, None], -1e4),
        "additive-one-row": torch.randn(1, 1, tokens, tokens, generator=g),
    }


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", ["none", *masks(1, 1)])
def test_masks_and_causal(backend, kind, causal):
    mask = masks(5, 9).get(kind)
    check_all(IDS, 9, 24, 12, 2, torch.float32, causal=causal, mask=mask)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_dropout_is_the_same_mask_forward_backward_and_on_every_backend(backend, dtype):
    check_all(IDS, 9, 24, 12, 2, dtype, dropout=0.3, activation="gelu")


@pytest.mark.parametrize("name", BACKENDS)
# The same draws in every run: of 2,000 free ones about one is a single number, as with D = S = T = 1, in which
# cancellation makes roundings a fifth larger than the bound.
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_is_as_good_as_eager(name, data):
    ids = data.draw(st.lists(st.integers(-1, 2), min_size=1, max_size=5))
    tokens, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    heads, head_dim, causal = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), data.draw(st.booleans())
    with hk.use_backend(name):
        check_all(ids, tokens, dim, heads * head_dim, heads, torch.float32, causal=causal, activation="gelu")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the C++ library")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_the_left_tail_of_an_activation_keeps_its_digits(activation):
    """x Phi(x) for x far below 0, where 1 + erf(x / sqrt 2) has lost all digits: relative error, element by element."""
    z = torch.linspace(-5.0, 1.0, 400)
    nothing = {name: [torch.zeros([1 if letter == "s" else 400 for letter in SHAPES[name]])] for name in REQUIRED}
    batch, bias = hk.TaskBatch.single(1), z.clone().requires_grad_()
    options = dict(decoder_bias=[bias], batch=batch, num_heads=1, activation=activation)
    with hk.use_backend("cpu"):
        out = pal_attention(torch.zeros(1, 1, 400), **nothing, **options)
        (got,) = torch.autograd.grad(out.sum(), bias)
    exact_z = z.double().requires_grad_()
    exact = F.gelu(exact_z) if activation == "gelu" else hk.get_activation(activation).fn(exact_z)
    # The exponent reaches 17, so a rounding of it is a relative error of 1e-6; with 1 + erf it would be above 1e-3.
    assert ((out.flatten() - exact) / exact).abs().max() < 5e-6
    (want,) = torch.autograd.grad(exact.sum(), exact_z)
    # The derivative has a zero near -0.75 (gelu) and -1.28 (silu): relative to the two terms whose sum it is.
    scale = want.abs() + (
        0.1 * torch.exp(-(z.double() ** 2) / 2) if activation != "silu" else 0.1 * torch.sigmoid(z.double())
    )
    assert ((got - want) / scale).abs().max() < 1e-5


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the C++ library")
def test_gradients_keep_their_digits_where_one_key_takes_nearly_all():
    """dS = P (dP - sum P dP) with P near (1, 0, 0): what the query gets is of the size of what the other keys have."""
    make = torch.Generator().manual_seed(5)
    size, tokens = 24, 3
    x = torch.randn(1, tokens, size, generator=make)
    weights = {name: [torch.eye(size)] for name in REQUIRED}
    weights["query"] = [torch.eye(size) * 1.8]

    def grads(dtype, through_op):
        leaf = [weights["query"][0].detach().to(dtype).requires_grad_()]
        own = {name: leaf if name == "query" else [w.to(dtype) for w in ws] for name, ws in weights.items()}
        out = (
            pal_attention(x.to(dtype), **own, batch=hk.TaskBatch.single(1), num_heads=1)
            if through_op
            else eager(x.to(dtype), own, [0], 1)
        )
        return torch.autograd.grad(out.square().sum(), leaf)[0]

    exact = grads(torch.float64, False)
    with hk.use_backend("cpu"):
        assert rel_error(grads(torch.float32, True), exact) < 0.01 * rel_error(grads(torch.float32, False), exact)


def call(x, weights, ids, heads=2, **options):
    return pal_attention(
        x, **weights, batch=hk.TaskBatch.from_ids(ids, len(weights["encoder"])), num_heads=heads, **options
    )


def test_rows_without_a_task_get_zeros(backend):
    x, _, weights = make(IDS, 4, 16, 8)
    out = call(x, weights, IDS)
    assert torch.equal(out[1], torch.zeros(4, 16))
    assert out[0].any()


def test_a_token_that_sees_nothing_gets_zeros_and_finite_gradients(backend):
    x, _, weights = make([0, 0], 3, 8, 4, REQUIRED)
    mask = torch.tensor([[False] * 3, [True, False, True]])
    x.requires_grad_()
    out = call(x, weights, [0, 0], mask=mask)
    assert torch.equal(out[0], torch.zeros(3, 8))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[0].any()


def test_masked_tokens_do_not_change_the_others(backend):
    x, _, weights = make([0, 1], 5, 16, 8)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    changed = x.clone()
    changed[:, 3:] = 7.0
    one, two = (call(t, weights, [0, 1], mask=mask)[:, :3] for t in (x, changed))
    assert torch.equal(one, two)


def test_a_task_without_rows_gets_no_gradient(backend):
    x, _, weights = make([0, 2], 3, 8, 4)
    for own in weights.values():
        for w in own:
            w.requires_grad_()
    call(x, weights, [0, 2]).sum().backward()
    assert [w.grad is None for w in weights["query"]] == [False, True, False]


def test_views_of_any_stride_are_accepted(backend):
    x, grad, weights = make(IDS, 6, 16, 8, REQUIRED)
    plain = run(lambda t: call(t[0], weights, IDS), [x], torch.float32, grad)
    doubled = {name: [w.double() for w in own] for name, own in weights.items()}
    with hk.use_backend("reference"):
        exact = run(lambda t: call(t[0], doubled, IDS), [x], torch.float64, grad)
    wide = torch.zeros(6, 5, 16, 2)
    wide[..., 1] = x.transpose(0, 1)
    view = wide[..., 1].transpose(0, 1).detach().requires_grad_()
    transposed = {name: [w.t().contiguous().t() for w in own] for name, own in weights.items()}
    out = call(view, transposed, IDS)
    grads = torch.autograd.grad(out, view, grad.transpose(1, 2).contiguous().transpose(1, 2))
    for got, want, truth in zip([out, *grads], plain, exact, strict=True):
        assert_as_good_as_eager(got, want, truth)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the C++ library")
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    ids = [0, 1, 0, -1, 1]
    x, _, weights = make(ids, 19, 40, 34, dtype=dtype)
    with hk.use_backend("cpu"):
        mixed = call(x, weights, ids, activation="gelu")
        for row, task in enumerate(ids):
            if task >= 0:
                own = {name: [ws[task]] for name, ws in weights.items()}
                assert torch.equal(mixed[row], call(x[row : row + 1], own, [0], activation="gelu")[0])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_same_bits_twice_and_with_one_and_two_threads(backend, dtype):
    ids = IDS * 3
    x, grad, weights = make(ids, 21, 40, 24, dtype=dtype)
    names, tasks = list(weights), len(weights["encoder"])

    def fn(leaves):
        own = {name: leaves[1 + i * tasks : 1 + (i + 1) * tasks] for i, name in enumerate(names)}
        return call(leaves[0], own, ids, activation="gelu")

    def once(count):
        with threads(count):
            return run(fn, [x, *(w for own in weights.values() for w in own)], dtype, grad)

    first = once(1)
    for other in map(once, [1, 2] if backend == "cpu" else [1]):
        assert all(torch.equal(p, q) for p, q in zip(first, other, strict=True))


def test_autocast_computes_in_the_autocast_dtype(backend):
    x, _, weights = make(IDS, 4, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x, weights, IDS).dtype == torch.bfloat16


def test_empty_batch_gives_empty_output(backend):
    x, _, weights = make([0], 4, 16, 8)
    assert call(x[:0], weights, []).shape == (0, 4, 16)
    assert call(x[:, :0], weights, [0]).shape == (1, 0, 16)


def test_opcheck(backend):
    x, _, weights = make([0, 1, -1], 3, 8, 4)
    flat = [w.requires_grad_() for own in weights.values() for w in own]
    present, mask = [True] * 12, torch.ones(3, 1, 1, 3, dtype=torch.bool)
    arguments = (flat, present, torch.tensor([0, 1, -1]), mask, 2, True, "gelu", 0.2, torch.tensor([3]), True)
    torch.library.opcheck(torch.ops.hfadapt.pal_attention.default, (x.requires_grad_(), *arguments))


def test_compiles_without_graph_breaks(backend):
    x, _, weights = make([0, 1, -1], 3, 8, 4)
    x.requires_grad_()

    def fn(x, ids):
        batch = hk.TaskBatch.from_ids(ids, 2)
        return pal_attention(x * 2, **weights, batch=batch, num_heads=2, activation="gelu").tanh()

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for rows in (3, 2):
        args = x[:rows], torch.tensor([0, 1, -1])[:rows]
        got, want = compiled(*args), fn(*args)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in (got, want)))


def test_gradient_of_gradient_is_right_on_the_reference_and_refused_elsewhere(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    x, _, weights = make([0, 1], 2, 3, 4, REQUIRED, dtype)
    x.requires_grad_()

    def fn(x):
        return call(x, weights, [0, 1])

    if backend == "reference":
        assert torch.autograd.gradcheck(fn, x)
        assert torch.autograd.gradgradcheck(fn, x)
    else:
        (grad,) = torch.autograd.grad(fn(x).square().sum(), x, create_graph=True)
        with pytest.raises(hk.DoubleBackwardError, match="pal_attention"):
            grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.randn(2, 8)), r"x: expected a floating-point \[B, T, D\]"),
        (dict(x=torch.randn(3, 3, 8)), "batch: expected 3 task ids, one a row of x, got 2"),
        (dict(num_heads=3), r"encoder\[0\]: expected \[S, 8\], S a multiple of num_heads=3"),
        (dict(query=[torch.randn(4, 4)]), "query: expected one tensor for each of the batch's 2 tasks, got 1"),
        (dict(decoder=[torch.randn(8, 5)] * 2), r"decoder\[0\]: expected torch.float32 \[8, 4\]"),
        (dict(mask=torch.ones(2, 3)), r"mask: expected bool \[2, 3\]"),
        (dict(mask=torch.ones(2, 2, 3, 3)), r"mask: expected bool \[2, 3\]"),
        (dict(activation="cos"), "activation is unknown"),
        (dict(dropout=-0.1), "dropout is not a probability"),
    ],
    ids=["rank", "rows", "heads", "tasks", "decoder", "float-2d", "heads-mask", "activation", "dropout"],
)
def test_wrong_arguments_name_op_argument_expected_and_got(change, message):
    x, _, weights = make([0, 1], 3, 8, 4, REQUIRED)
    arguments = dict(x=x, **weights, batch=hk.TaskBatch.from_ids([0, 1], 2), num_heads=2)
    with pytest.raises(hk.KernelError, match=rf"pal_attention: {message}"):
        pal_attention(**arguments | change)
