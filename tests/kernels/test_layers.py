"""Layers for kernelize: the numbers and gradients of the modules that they replace, and the rules that they keep."""

from __future__ import annotations

import copy
import inspect
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

import hfadapt_kernels as hk
from hfadapt_kernels import layers

CLASSES = [getattr(layers, name) for name in layers.__all__]


class Bottleneck(nn.Module):
    """What `layers.AdapterNorm` replaces, as its docstring says it."""

    def __init__(self, norm: nn.Module, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(32, 8, bias=bias), nn.Linear(8, 32, bias=bias)
        self.norm, self.activation = norm, activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        act = hk.get_activation(self.activation).fn
        return self.norm(x + residual + getattr(self, "scale", 1.0) * self.up(act(self.down(x))))


def replaced(module: Any, layer: type[Any]) -> Any:
    """A module of the same parameters with the layer's forward, as kernelize puts it there."""
    other = copy.copy(module)
    other.forward = MethodType(layer.forward, other)
    return other


@pytest.mark.parametrize("layer", CLASSES)
def test_layers_keep_the_rules_of_kernelize(layer: type[nn.Module]) -> None:
    assert layer.__init__ is nn.Module.__init__
    own = {name for name, _ in inspect.getmembers(layer)} - {name for name, _ in inspect.getmembers(nn.Module)}
    assert own <= {"can_torch_compile", "has_backward"}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in inspect.signature(layer.forward).parameters.values())


NORMS = {
    "layer": lambda: nn.LayerNorm(32, eps=1e-6),
    "layer without bias": lambda: nn.LayerNorm(32, bias=False),
    "layer without weight": lambda: nn.LayerNorm(32, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(32, eps=1e-6),
    "rms of torch's own eps": lambda: nn.RMSNorm(32),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_adapter_norm_gives_results_and_all_gradients_of_the_module(norm: str, bias: bool) -> None:
    torch.manual_seed(0)
    eager = Bottleneck(NORMS[norm](), bias=bias).double()
    eager.scale = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    fused = replaced(eager, layers.AdapterNorm)
    x, residual = (torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaves = [x, residual, eager.scale, *eager.parameters()]
    want, found = eager(x, residual), fused(x, residual)
    torch.testing.assert_close(found, want)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), leaves), torch.autograd.grad(want.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_adapter_norm_compiles_without_graph_breaks() -> None:
    torch.manual_seed(0)
    eager = Bottleneck(nn.LayerNorm(32))
    fused = torch.compile(replaced(eager, layers.AdapterNorm), fullgraph=True, backend="aot_eager")
    x, residual = torch.randn(3, 5, 32, requires_grad=True), torch.randn(3, 5, 32)
    torch.testing.assert_close(fused(x, residual), eager(x, residual))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(32), nn.LayerNorm([5, 32])])
def test_adapter_norm_refuses_a_norm_that_it_does_not_compute(norm: nn.Module) -> None:
    fused = replaced(Bottleneck(norm), layers.AdapterNorm)
    with pytest.raises(hk.UnsupportedError, match=r"nn.LayerNorm or nn.RMSNorm over the last axis of 32") as caught:
        fused(torch.randn(3, 5, 32), torch.randn(3, 5, 32))
    assert type(norm).__name__ in str(caught.value)


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_linear_gives_results_and_gradients_of_the_module(bias: bool) -> None:
    torch.manual_seed(0)
    eager = nn.Linear(32, 48, bias=bias)
    eager.weight.requires_grad_(False)
    fused = replaced(eager, layers.FrozenLinear)
    x = torch.randn(4, 7, 32, requires_grad=True)
    leaves = [x, *([eager.bias] if bias else [])]
    for backend in ("reference", "auto"):
        with hk.use_backend(backend):
            found = fused(x)
            torch.testing.assert_close(found, eager(x))
            grads = torch.autograd.grad(found.square().sum(), leaves)
        for ours, theirs in zip(grads, torch.autograd.grad(eager(x).square().sum(), leaves), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_frozen_linear_sees_a_changed_and_an_exchanged_weight_and_leaves_no_trace_on_the_module() -> None:
    torch.manual_seed(0)
    fused = replaced(nn.Linear(32, 48), layers.FrozenLinear).requires_grad_(False)
    x, members = torch.randn(4, 32), set(vars(fused))
    before = fused(x)
    fused.weight.mul_(2)
    torch.testing.assert_close(fused(x), 2 * (before - fused.bias) + fused.bias)
    fused.weight = nn.Parameter(torch.zeros(48, 32), requires_grad=False)
    torch.testing.assert_close(fused(x), fused.bias.expand(4, 48))
    assert set(vars(fused)) == members
    torch.testing.assert_close(copy.deepcopy(fused)(x), fused(x))


def test_the_int8_layer_rounds_and_the_exact_one_beside_it_does_not() -> None:
    torch.manual_seed(0)
    eager = nn.Linear(32, 48).requires_grad_(False)
    x = torch.randn(4, 32)
    rounded = replaced(eager, layers.FrozenLinearInt8)(x)
    exact = replaced(eager, layers.FrozenLinear)(x)
    torch.testing.assert_close(exact, eager(x))
    assert not torch.allclose(rounded, exact) and (rounded - exact).abs().max() < 0.1


def test_a_weight_that_trains_is_refused_and_without_gradients_served() -> None:
    eager = nn.Linear(32, 48)
    fused = replaced(eager, layers.FrozenLinear)
    x = torch.randn(4, 32)
    with pytest.raises(hk.UnsupportedError, match="a frozen weight, for it gets no gradient"):
        fused(x)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), eager(x))
