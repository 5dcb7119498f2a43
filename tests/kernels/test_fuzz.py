"""Random valid calls of every op through C++, held against float64: results, every gradient, and what is not finite.

A seeded sample by default; ``-m thorough`` tries thousands. Workspaces and results are full of NaN beforehand
(``HFADAPT_POISON=1``, set for the whole suite), so that what is read before it is written shows.
"""

from __future__ import annotations

import pytest
import torch

import hfadapt_kernels as hk
from hfadapt_kernels import native
from hfadapt_kernels.testing import assert_as_good_as_eager_nearby, nan_poisoned
from tests.kernels.fuzz import OPS, Call, Draw

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))
DTYPES = (torch.float32, torch.bfloat16)


def strided(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    """The same values, lying otherwise in memory."""
    kind = draw.choice(("plain", "plain", "apart", "transposed"))
    if kind == "apart" and tensor.dim():
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan"), dtype=tensor.dtype)
        wide[..., 1::2] = tensor
        return wide[..., 1::2]
    if kind == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    return tensor.clone()


def run(call: Call, backend: str, leaves: dict[str, torch.Tensor], grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results without and with gradients, then the gradient of each input (zeros where there is none)."""
    with hk.use_backend(backend):
        with torch.no_grad():
            alone = call.fn(leaves)
        leaves = {n: t.detach().requires_grad_(n not in call.frozen) for n, t in leaves.items()}
        outs = call.fn(leaves)
        live = [(o, g.to(o.dtype)) for o, g in zip(outs, grads, strict=True) if o.requires_grad]
        wanted = [t for n, t in leaves.items() if n not in call.frozen]
        found = (
            torch.autograd.grad([o for o, _ in live], wanted, [g for _, g in live], allow_unused=True) if live else ()
        )
    found = [
        torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found or [None] * len(wanted), strict=True)
    ]
    return [*alone, *(o.detach() for o in outs), *found]


def check(call: Call, draw: Draw, dtype: torch.dtype) -> None:
    """Compare one call with float64, finite or not."""
    inputs = {n: t.to(dtype) for n, t in call.inputs.items()}
    planted = draw.choice([*call.plant, ""]) if call.plant and draw.often(0.4) else ""
    if planted and inputs[planted].numel():
        flat = inputs[planted].view(-1)
        flat[draw.randrange(flat.numel())] = draw.choice((float("nan"), float("inf"), float("-inf")))
    exact_leaves = {n: t.double() for n, t in inputs.items()}
    with hk.use_backend("reference"), torch.no_grad():
        shapes = [o.shape for o in call.fn(exact_leaves)]
    grads = [draw.normal(*shape).to(dtype) for shape in shapes]
    exact = run(call, "reference", exact_leaves, grads)
    eager = run(call, "reference", inputs, grads)
    with nan_poisoned():
        ours = run(call, "cpu", {n: strided(draw, t) for n, t in inputs.items()}, grads)
    results = 2 * len(shapes)
    names = [f"result {i}" for i in range(results)] + [n for n in inputs if n not in call.frozen]
    for i, (name, got, near, want) in enumerate(zip(names, ours, eager, exact, strict=True)):
        assert got.dtype == near.dtype and got.shape == want.shape, name
        hidden = got.isfinite() & ~near.isfinite() & ~want.isfinite()
        assert not hidden.any(), f"{name}: finite where it is not (planted in {planted})"
        if i < results:
            spread = ~got.isfinite() & near.isfinite() & want.isfinite()
            assert not spread.any(), f"{name}: not finite where it is (planted in {planted})"
    if planted:
        return

    def evaluate(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        return run(call, "reference", dict(zip(inputs, leaves, strict=True)), grads)

    groups = {name: [i] for i, name in enumerate(names) if exact[i].numel()}
    assert_as_good_as_eager_nearby(ours, evaluate, list(inputs.values()), groups)


@pytest.mark.parametrize("isa", native.ISA_NAMES)
@pytest.mark.parametrize("make", OPS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("calls", [25, pytest.param(600, marks=pytest.mark.thorough)])
def test_random_calls(make, isa, calls):
    try:
        with native.use_isa(isa):
            for number in range(calls):
                draw = Draw(f"{make.__name__} {number}")
                call, dtype = make(draw), DTYPES[number % 2]
                try:
                    check(call, draw, dtype)
                except Exception as error:
                    shapes = {n: list(t.shape) for n, t in call.inputs.items()}
                    raise AssertionError(f"call {number}, {dtype}, {call.about}, {shapes}: {error!r}") from error
    except hk.BackendError as error:
        pytest.skip(str(error))
