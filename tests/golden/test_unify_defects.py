"""Where the published code of the unified view fails or is wasteful, ours works; each test shows the difference."""

from __future__ import annotations

import dataclasses
import json

import golden_unify
import pytest
import torch
from golden_files import close, starting_with
from golden_unify import Golden, adapt, outputs_of, parameter_map, read
from golden_unify_base import base_model

import hfadapt
from hfadapt.runtime.attachment import copies_of

INDEX = json.loads((golden_unify.DATA / "index.json").read_text())
CRASHES = {"roberta/prefix_gate_add", "roberta/prefix_nogating", "roberta/mh_pa", "bart/pfeiffer"}
GATED = {"attn_option": "cross_attn_noln", "attn_composition": "gate_add"}


def test_every_case_of_the_index_is_a_golden_or_crashes_or_is_computed() -> None:
    """mBART's are computed from formulas (`test_unify_formula`)."""
    assert {name for name, entry in INDEX.items() if "error_forward" in entry} == CRASHES
    here = {case.replace("_", "/", 1) for case in golden_unify.cases()}
    assert not {name for name in INDEX if not name.startswith("mbart")} - here - CRASHES


def variant(golden: Golden, **options: object) -> Golden:
    return dataclasses.replace(golden, options={**golden.options, **options})


def test_the_gate_on_roberta_is_the_concatenation() -> None:
    """The fork crashes on a view; the two forms are one identity, so the concatenation's golden is what to expect."""
    golden = read("roberta_prefix")
    model = base_model("roberta")
    pairs = adapt(model, variant(golden, **GATED))
    found = dict(outputs_of(model, golden))
    for key, value in found.items():
        close(value, golden.tensors[f"output.{key}"], key)
    found["loss"].sum().backward()
    for key, value in starting_with(golden.tensors, "output.grad.").items():
        close(pairs[key].to_fork(pairs[key].parameter.grad), value, f"gradient of {key}")


@pytest.mark.parametrize("option", ["cross_attn_noln", "cross_attn_relu"])
def test_added_prefixes_on_roberta(option: str) -> None:
    """The fork misses an option of its config. Ours add ``f(q P_k^T) P_v`` to each head, layer by layer."""
    golden = variant(read("roberta_prefix"), attn_option=option)
    model = base_model("roberta")
    adapt(model, golden)
    states = [h for key, h in outputs_of(model, golden) if key.startswith("hidden")]
    hfadapt.activate(model, None)
    table = starting_with(golden.tensors, "new.prompt_model.")
    inner = torch.tanh(table["wte.weight"] @ table["control_trans.0.weight"].T + table["control_trans.0.bias"])
    made = (inner @ table["control_trans.2.weight"].T + table["control_trans.2.bias"]).view(-1, 4, 4, 6)
    function = torch.relu if option == "cross_attn_relu" else lambda scores: torch.softmax(scores, -1)
    hidden = golden.inputs["attention_mask"][:, None, None, :] == 0
    mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, torch.finfo(torch.float64).min)
    for number, layer in enumerate(model.roberta.encoder.layer):
        keys, values = (made[:, 2 * number + side].transpose(0, 1) for side in (0, 1))
        query = layer.attention.self.query(states[number]).unflatten(-1, (4, 6)).transpose(1, 2)
        added = function(query @ keys.transpose(-1, -2) / 6**0.5) @ values
        joined = added.transpose(1, 2).flatten(2)
        output = layer.attention.output.dense
        output.register_forward_pre_hook(lambda module, args, joined=joined: (args[0] + joined,))
        out = layer(states[number], mask)
        close((out if torch.is_tensor(out) else out[0]), states[number + 1].detach(), f"layer {number}")


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_gate_generates_what_the_concatenation_does(use_cache: bool) -> None:
    """The fork crashes in generation, where a step has no mask."""
    assert "generate_error_beams1" in INDEX["bart/prefix_gate_add"]
    golden = read("bart_prefix")
    model = base_model("bart")
    adapt(model, variant(golden, **GATED))
    call = {k: golden.inputs[k] for k in ("input_ids", "attention_mask")} | golden_unify.GENERATE
    for beams, want in starting_with(golden.tensors, "output.generate.beams").items():
        got = model.generate(**call, num_beams=int(beams), use_cache=use_cache, do_sample=False)
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize("case", ["roberta_prefix", "roberta_prefix_nomlp", "roberta_pa_ffn", "roberta_mam"])
def test_no_parameter_is_made_that_is_never_read(case: str) -> None:
    """The fork gives RoBERTa two prefixes and a second adapter that nothing reads."""
    golden = read(case)
    model = base_model("roberta")
    ours = adapt(model, golden)
    entry = INDEX[case.replace("_", "/", 1)]
    unread = entry["new_without_grad"]
    assert set(ours) == set(starting_with(golden.tensors, "new.")) - set(unread)
    dead = sum(golden.tensors[f"new.{key}"].numel() for key in unread)
    # The fork's count is without the head, of which every adapter has a copy here.
    made = sum(p.numel() for p in hfadapt.parameters_of(model, "default", own_modules=False).values())
    assert made == entry["new_params"] - dead < entry["new_params"]
    copies = {path for path, _ in copies_of(model, "default")}
    assert copies == {"classifier.dense", "classifier.out_proj"}, copies


def test_the_classification_head_trains() -> None:
    """The fork freezes by name whatever has no ``ef_`` in it, the new head included."""
    golden = read("roberta_mam")
    model = base_model("roberta")
    adapt(model, golden)
    (name,) = hfadapt.attachment(model).names
    assert all(p.requires_grad for own in hfadapt.own_modules(model, name).values() for p in own.parameters())
    names = parameter_map(model, "roberta")
    assert not any(p.requires_grad for n, p in model.roberta.named_parameters() if "hfadapt" not in n)
    assert all(pair.parameter.requires_grad for pair in names.values())
