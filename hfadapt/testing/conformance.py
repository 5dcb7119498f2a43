"""What every adaptation method must hold on every architecture; for built-in and third-party methods alike.

A plugin's test file needs only this::

    import pytest
    from hfadapt.testing import conformance

    @pytest.mark.parametrize("case", conformance.cases([MyConfig()]), ids=str)
    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
    def test_conformance(case, check):
        check(case)

Models are tiny, random and in float64, so that equality means equality up to 1e-9 and not up to luck.
"""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import hfadapt

from .. import plugins
from ..errors import AttachError
from ..errors.names import names_of
from ..method.config import MethodConfig
from ..method.method import expand
from .tiny import ALL_TINY_TYPES, tiny_inputs, tiny_model

__all__ = ["CHECKS", "COMPILED_TYPES", "Case", "cases", "check_compile"]

# Their norms or rotary embeddings compute in float32 whatever the model's dtype, and small differences drown in it.
_FLOAT32_NORMS = ("modernbert", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "t5")
# Tracing takes most of the time there. These repeat one kind of layer, and modernbert shows several; t5 takes a third
# longer with a cache, and llama shows one.
_TRACED = {
    "bert": {"num_hidden_layers": 1},
    "llama": {"num_hidden_layers": 1},
    "t5": {"num_layers": 1, "num_decoder_layers": 1, "use_cache": False},
}
COMPILED_TYPES = ("bert", "modernbert", "llama", "t5")
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """One method on one architecture."""

    method: str | MethodConfig | tuple[MethodConfig, ...]
    model_type: str

    def __str__(self) -> str:
        if isinstance(self.method, str):
            return f"{self.method}-{self.model_type}"
        configs = self.method if isinstance(self.method, tuple) else (self.method,)
        return "+".join(c.method for c in configs) + f"-{self.model_type}"

    @property
    def configs(self) -> tuple[MethodConfig, ...]:
        """The configs that make one adapter."""
        return expand(self.method)

    def model(self, **changes: Any) -> PreTrainedModel:
        """A fresh tiny model in float64 and evaluation mode; ``changes`` are settings of its config."""
        if changes:
            return tiny_model(self.model_type, **changes).double()
        return copy.deepcopy(_made_once(self.model_type))

    def inputs(self, batch: int = 3) -> dict[str, Tensor]:
        """Inputs with padding where the architecture takes a mask."""
        given = tiny_inputs(self.model_type, batch=batch, padding="right")
        return {k: v.double() if v.is_floating_point() else v for k, v in given.items()}

    def adapted(self, names: str | Sequence[str] = ("one", "two"), **changes: Any) -> PreTrainedModel:
        """A model with adapters whose every parameter is random, so that none of them is a no-op."""
        model = self.model(**changes)
        hfadapt.attach(model, self.method, names=names, seed=0, verify=False)  # the first check verifies
        randomize(model)
        return model

    def refused(self) -> str | None:
        """Why the method does not fit this architecture, or None when it does."""
        try:
            hfadapt.attach(self.model(), self.method)
        except AttachError as error:
            return str(error)
        return None


# The case that was adapted last, and its model: what three checks in turn look at and leave as it is.
_last: list[tuple[Case, PreTrainedModel]] = []


def _adapted_once(case: Case) -> PreTrainedModel:
    """The adapted model of a case in evaluation mode, the same one as long as no other case is asked for."""
    if not _last or _last[0][0] is not case:
        _last[:] = [(case, case.adapted())]
    return _last[0][1]


@functools.cache
def _made_once(model_type: str) -> PreTrainedModel:
    """A copy of a model takes less time than a new one, for T5 a third."""
    return tiny_model(model_type).double()


def randomize(model: PreTrainedModel, seed: int = 7) -> None:
    """Move every adapter parameter of ``model``; small, so that float32 paths stay well-conditioned too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in hfadapt.attachment(model).names:
            for parameter in hfadapt.parameters_of(model, name).values():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype), alpha=0.1)


def cases(
    methods: str | MethodConfig | Iterable[str | MethodConfig | tuple[MethodConfig, ...]],
    model_types: str | Iterable[str] = ALL_TINY_TYPES,
) -> list[Case]:
    """Every method on every architecture; the full CLIP model's output mixes rows and is left to its towers."""
    chosen: Iterable[Any] = (methods,) if isinstance(methods, (str, MethodConfig)) else methods
    types = names_of(model_types)
    return [Case(m, t) for m in chosen for t in types if t != "clip"]


def output(model: Callable[..., Any], inputs: dict[str, Tensor], **more: Any) -> Tensor:
    """The first tensor that a model returns, and behind its tokens the pooled vector where there is one."""
    out = model(**inputs, **more)
    pooled = getattr(out, "pooler_output", None)
    if pooled is None or out[0].dim() != 3 or pooled.shape != out[0][:, 0].shape:
        return out[0]
    return torch.cat([out[0], pooled.unsqueeze(1)], 1)


def _equal(got: Tensor, want: Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
    error = (got - want).abs().max().item() if got.numel() else 0.0
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    assert got.shape == want.shape and error <= tolerance * scale, f"{what}: differs by {error:.3g}"


@torch.no_grad()
def check_detach_restores_the_base(case: Case) -> None:
    """attach adds names and takes none away; detach restores logits, names and flags bit for bit."""
    model, inputs = case.model(), case.inputs()
    before, keys, kind = output(model, inputs), list(model.state_dict()), type(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    implementation = model.config._attn_implementation
    handle = hfadapt.attach(model, case.method)
    assert set(keys) <= set(model.state_dict()), "a base parameter lost its name"
    assert type(model) is kind, "the model's class changed"
    with hfadapt.active(model, None):
        assert torch.equal(output(model, inputs), before), "the base alone differs while adapters are off"
    handle.detach()
    assert torch.equal(output(model, inputs), before), "logits differ after detach"
    assert list(model.state_dict()) == keys, "names differ after detach"
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags, "requires_grad differs after detach"
    assert model.config._attn_implementation == implementation, "the attention implementation was not put back"


@torch.no_grad()
def check_fresh_adapter_starts_as_base(case: Case) -> None:
    """Methods that say they start as the base do."""
    if not all(plugins.methods()[c.method].starts_as_base(c) for c in case.configs):
        return
    model, inputs = case.model(), case.inputs()
    before = output(model, inputs)
    hfadapt.attach(model, case.method, verify=False)
    _equal(output(model, inputs), before, "a fresh adapter changes the base")


@torch.no_grad()
def check_save_and_load(case: Case) -> None:
    """A saved adapter on a fresh base gives the same outputs bit for bit."""
    model, inputs = _adapted_once(case), case.inputs()
    want = output(model, inputs, task_ids="two")
    with tempfile.TemporaryDirectory() as folder:
        hfadapt.save(model, folder)
        again = hfadapt.load(folder, case.model())
    assert torch.equal(output(again, inputs, task_ids="two"), want), "outputs differ after load"


@torch.no_grad()
def check_mixed_batch_equals_each_alone(case: Case) -> None:
    """A row's output does not depend on the adapters of its neighbours; rows may be in any order."""
    model, inputs = _adapted_once(case), case.inputs()
    alone = {name: output(model, inputs, task_ids=name) for name in ("one", "two")}
    order = ["two", "one", "two"]
    _, other = alone["one"], alone["two"]
    assert (alone["one"] - other).abs().max() > 1e-6, "two random adapters give the same output"
    for ids in (order, torch.tensor([1, 0, 1])):
        mixed = output(model, inputs, task_ids=ids)
        for row, name in enumerate(order):
            _equal(mixed[row], alone[name][row], f"row {row} ({name}) of a mixed batch")


def check_only_intended_parameters_train(case: Case) -> None:
    """Adapters with rows get gradients; the base and adapters without rows get none at all."""
    model, inputs = _adapted_once(case), case.inputs()
    output(model.train(), inputs, task_ids="one").square().mean().backward()
    mine = {id(p): n for n, p in hfadapt.parameters_of(model, "one").items()}
    got = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    wanted = {name: id(parameter) in mine for name, parameter in model.named_parameters()}
    model.eval().zero_grad()
    for name, trains in wanted.items():
        assert got[name] is trains, f"{'no' if trains else 'unexpected'} gradient: {name}"


def _gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    output(model, inputs, task_ids=["two", "one", "two"]).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_gradient_checkpointing(case: Case) -> None:
    """Activation checkpointing gives the same gradients."""
    model, inputs = case.adapted(), case.inputs()
    if not model.supports_gradient_checkpointing:
        return
    _without_dropout(model.train())
    want = _gradients(model, inputs)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    got = _gradients(model, inputs)
    assert got.keys() == want.keys(), f"gradients of other parameters: {sorted(got.keys() ^ want.keys())[:3]}"
    for name, gradient in want.items():
        _equal(got[name], gradient, f"gradient of {name} under checkpointing")


def _without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_prob", "hidden_dropout"):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)


@torch.no_grad()
def check_copies(case: Case) -> None:
    """deepcopy and pickle carry the adapters along, and a copy does not follow the original."""
    model, inputs = case.adapted(), case.inputs()
    want = output(model, inputs, task_ids="two")
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    randomize(model, seed=8)
    assert torch.equal(output(copied, inputs, task_ids="two"), want), "a deep copy differs"
    assert torch.equal(output(pickled, inputs, task_ids="two"), want), "a pickled copy differs"
    hfadapt.detach(copied)
    assert not torch.equal(output(copied, inputs), want)


def check_gradients_in_float64(case: Case) -> None:
    """The gradient of each parameter, along a random direction, equals the difference quotient."""
    # A difference quotient across the kink of a ReLU is not a derivative.
    smooth = {"t5": {"feed_forward_proj": "gated-gelu"}, "opt": {"activation_function": "gelu"}}
    model, inputs = case.adapted(**smooth.get(case.model_type, {})), case.inputs()
    ids = ["two", "one", "two"]
    weight = torch.randn(output(model, inputs, task_ids=ids).shape, dtype=torch.float64, generator=torch.manual_seed(3))
    model.zero_grad()
    (output(model, inputs, task_ids=ids) * weight).sum().backward()
    parameters = [p for name in ("one", "two") for p in hfadapt.parameters_of(model, name).values()]
    generator = torch.Generator().manual_seed(5)
    # Norms in float32 drown small steps; within large ones attention bends and a ReLU may have its kink.
    float32 = case.model_type in _FLOAT32_NORMS
    steps, tolerance = ((1e-3, 1e-4, 1e-5, 1e-6), 3e-3) if float32 else ((1e-6,), 1e-4)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slopes = [(p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True) if p.grad is not None]
    slope = sum(slopes)

    @torch.no_grad()
    def moved(by: float) -> float:
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=by)
        return (output(model, inputs, task_ids=ids) * weight).sum().item()

    # Rounding is as large as the parts of the sum are, also where they cancel.
    parts = max(1.0, sum(map(abs, slopes)) / 2)
    for step in steps:
        quotient = (moved(step) - moved(-2 * step)) / (2 * step)
        moved(step)
        if abs(slope - quotient) <= tolerance * max(parts, abs(quotient)):
            return
    raise AssertionError(f"gradient {slope:.9g}, difference {quotient:.9g}")


def check_compile(case: Case, backend: str = "aot_eager", **changes: Any) -> None:
    """``torch.compile(fullgraph=True)`` traces the adapted model and gives the same outputs and gradients.

    Args:
        case: One method on one architecture.
        backend: ``aot_eager`` traces the backward pass as well, ``eager`` the forward pass alone.
        changes: Settings of the model's config, say of fewer layers.
    """
    model, inputs = case.adapted(("one", "two"), **{**_TRACED.get(case.model_type, {}), **changes}), case.inputs()
    ids = torch.tensor([1, 0, 1])
    with torch.no_grad():
        want = output(model, inputs, task_ids=ids)
    gradients = _gradients(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    model.zero_grad()
    got = output(compiled, inputs, task_ids=ids)
    _equal(got.detach(), want, "compiled output")
    got.square().mean().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert parameter.grad is not None, f"no gradient when compiled: {name}"
            _equal(parameter.grad, gradients[name], f"gradient of {name} when compiled")
    torch._dynamo.reset()


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_detach_restores_the_base,
    check_fresh_adapter_starts_as_base,
    check_save_and_load,
    check_mixed_batch_equals_each_alone,
    check_only_intended_parameters_train,
    check_gradient_checkpointing,
    check_copies,
    check_gradients_in_float64,
)
