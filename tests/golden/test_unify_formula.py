"""The fork's BART and mBART as formulas: they equal the goldens of BART, and stand for those of mBART."""

from __future__ import annotations

import json
from typing import Any

import golden_unify
import pytest
import torch
from formula_unify import Formula, layout
from golden_files import close, starting_with
from golden_unify import Golden, adapt, outputs_of, read
from golden_unify_base import base_weights, load, stock_model
from torch import Tensor
from transformers import PreTrainedModel

INDEX = json.loads((golden_unify.DATA / "index.json").read_text())
OPTIONS = {name: entry["options"] for name, entry in INDEX.items() if "options" in entry and "roberta" not in name}
BART = [c for c in golden_unify.cases() if c.startswith("bart")]
MBART = [name for name in OPTIONS if name.startswith("mbart")]


@pytest.mark.parametrize("name", OPTIONS)
def test_layout_has_as_many_weights_as_the_fork_says(name: str) -> None:
    shapes = layout(OPTIONS[name])
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == INDEX[name]["new_params"]


@pytest.mark.parametrize("case", BART)
def test_formulas_equal_the_goldens_of_bart(case: str) -> None:
    golden = read(case)
    new = starting_with(golden.tensors, "new.")
    assert {k: tuple(v.shape) for k, v in new.items()} == layout(golden.options)
    weights = starting_with(base_weights("bart"), "base.") | new
    found = Formula(weights, golden.options, pre_norm=False)(*arguments(golden))
    for key, value in found.items():
        close(value, golden.tensors[f"output.{key}"], key)


@pytest.mark.parametrize("name", MBART)
def test_mbart_equals_the_formulas(name: str) -> None:
    """The map of options and names with complete weights of mBART: outputs, loss and gradients."""
    used = against_the_formulas("mbart", OPTIONS[name])
    assert used == set(layout(OPTIONS[name])) - set(INDEX[name]["new_without_grad"])


def test_pfeiffer_on_bart_which_the_fork_refuses() -> None:
    """``LN(f + U relu(D LN(f + a)) + a)`` with BART's own norm twice, as the fork has it for RoBERTa."""
    assert "error_forward" in INDEX["bart/pfeiffer"]
    against_the_formulas("bart", OPTIONS["mbart/pfeiffer"])


def against_the_formulas(arch: str, options: dict[str, Any]) -> set[str]:
    """Compare a random model with complete new weights to the formulas; return the weights that the formulas use."""
    model, base = random_base(arch)
    new = {k: v.requires_grad_() for k, v in random(layout(options), seed=2).items()}
    inputs = {k: v for k, v in read("bart_none").tensors.items() if k.startswith("input.")}
    golden = Golden(arch, options, {f"new.{k}": v.detach() for k, v in new.items()} | inputs)
    pairs = adapt(model, golden)
    wanted = Formula(base | new, options, pre_norm=arch == "mbart")(*arguments(golden))
    found = dict(outputs_of(model, golden))
    assert set(found) == set(wanted)
    for key, value in found.items():
        close(value, wanted[key].detach(), key)
    if pairs:
        found["loss"].sum().backward()
        wanted["loss"].sum().backward()
    for key, pair in pairs.items():
        close(pair.to_fork(pair.parameter.grad), new[key].grad, f"gradient of {key}")
    used = {k for k, v in new.items() if v.grad is not None}
    assert used == set(pairs)
    return used


@pytest.mark.parametrize("name", ["mbart/mam", "mbart/mh_pa", "mbart/pa_attn", "mbart/prefix_gate_add"])
def test_mbart_generates_the_same_with_and_without_cache(name: str) -> None:
    model, _ = random_base("mbart")
    new = {f"new.{k}": v for k, v in random(layout(OPTIONS[name]), seed=2).items()}
    adapt(model, Golden("mbart", OPTIONS[name], new))
    inputs = starting_with(read("bart_none").tensors, "input.")
    call = {k: inputs[k] for k in ("input_ids", "attention_mask")} | golden_unify.GENERATE
    for beams in (1, 2):
        cached, plain = (model.generate(**call, num_beams=beams, use_cache=on).tolist() for on in (True, False))
        assert cached == plain


def random_base(arch: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    model = stock_model(arch)
    tied = ("embed_tokens", "lm_head", "final_logits_bias")
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not any(word in k for word in tied)}
    base = random(shapes, seed=1)
    return load(model, base), base


def arguments(golden: Golden) -> tuple[Tensor, ...]:
    inputs = golden.inputs
    return tuple(inputs[k] for k in ("input_ids", "attention_mask", "decoder_input_ids", "labels"))


def random(shapes: dict[str, Any], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Numbers of float32, which a model may hold on its way to float64.
    made = {k: 0.3 * torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    near_one = ("norm.weight", "norm_before.weight", "scale")
    return {k: (v + k.endswith(near_one)).double() for k, v in made.items()}
