"""LoRA, prefix tuning, MAM and AdapterFusion equal AdapterHub's in float64; where it has a defect, a test shows it."""

from __future__ import annotations

import re

import golden_adapterhub as hub
import golden_adapterhub_methods as methods
import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.slots import source_of
from hfadapt_plugins.methods.fusion import FusionLayer
from hfadapt_plugins.methods.prefix.attend import PrefixAttention

FILES = methods.available()
FUSED = [f for f in hub.available() if any(t.startswith("fuse") for t in hub.read(f).tags)]
# T5's norms compute in float32; a fusion, whose scores are not scaled, enlarges that noise.
TOLERANCE = {"t5": 1e-5}
FUSED_TOLERANCE = {"t5": 1e-4}


def run(model: nn.Module, golden: hub.Golden, tag: str) -> dict[str, tuple[torch.Tensor, ...]]:
    """Hidden states of one run, ``a.drop2`` or ``parallel``, by stack."""
    match = re.fullmatch(r"(\w+?)(?:\.drop(\d+))?", tag)
    assert match
    who, drop = match[1], int(match[2] or 0)
    choice = {"base": None, "parallel": hfadapt.Parallel(*hub.NAMES), "fuse": hfadapt.Fuse(*hub.NAMES)}.get(who, who)
    # AdapterHub numbers the layers of an encoder first, so its skipped layers are the encoder's only.
    hfadapt.set_adapter_drop(model, {"encoder": drop} if drop else None)
    with hfadapt.active(model, choice), torch.no_grad():
        out = model(**golden.inputs, output_hidden_states=True)
    hfadapt.set_adapter_drop(model, None)
    if golden.arch == "t5":
        return {"hidden": out.encoder_hidden_states, "dec_hidden": out.decoder_hidden_states}
    return {"hidden": out.hidden_states}


def errors(model: nn.Module, golden: hub.Golden, tag: str) -> list[float]:
    """Relative error of every hidden state of one run."""
    found = []
    for part, states in run(model, golden, tag).items():
        for got, want in zip(states, golden.hidden(tag, part), strict=True):
            # What transformers records first is the input of layer 0, where a parallel batch has grown already.
            want = want.repeat(got.shape[0] // want.shape[0], 1, 1)
            found.append((got - want).abs().max().item() / max(1.0, want.abs().max().item()))
    return found


def has_shifted_bias(file: str, tag: str) -> bool:
    return file.startswith("t5") and ("prefix" in file or "mam" in file) and tag != "base"


CASES = [(f, t) for f in FILES for t in hub.read(f).tags if not has_shifted_bias(f, t)]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("file", "tag"), CASES, ids=lambda v: v)
def test_hidden_states(file: str, tag: str, implementation: str) -> None:
    golden = hub.read(file)
    model = methods.adapted(golden, attn_implementation=implementation)
    assert max(errors(model, golden, tag)) <= TOLERANCE.get(golden.arch, 1e-9)


@pytest.mark.parametrize("tag", ["fuse", "fuse.drop1"])
@pytest.mark.parametrize("file", [f for f in FUSED if "par_bn" not in f])
def test_fusion_of_serial_adapters(file: str, tag: str) -> None:
    golden = hub.read(file)
    model = hub.adapted(golden)
    methods.add_fusion(model, golden)
    assert max(errors(model, golden, tag)) <= FUSED_TOLERANCE.get(golden.arch, 1e-9)


@pytest.mark.parametrize("tag", ["fuse", "fuse.drop1"])
@pytest.mark.parametrize("file", [f for f in FUSED if "par_bn" in f])
def test_fusion_of_parallel_adapters_adds_the_residual_once(
    file: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdapterHub adds the sub-layer's input once as the fusion's residual and once more before the norm."""
    golden = hub.read(file)
    model = hub.adapted(golden)
    methods.add_fusion(model, golden)
    assert max(errors(model, golden, tag)) > 0.01
    once = FusionLayer.forward

    def twice(self, value, leaf_input, leaf, routing, index):
        delta = leaf.hfadapt.side(self.side)[0]
        return once(self, value, leaf_input, leaf, routing, index) + source_of(delta, value, leaf_input, routing)

    monkeypatch.setattr(FusionLayer, "forward", twice)
    assert max(errors(model, golden, tag)) <= 1e-9


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("t5") and ("prefix" in f or "mam" in f)])
def test_t5_prefix_leaves_the_relative_bias_of_real_keys(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdapterHub gives real key j the bias of place j + l, and prefix key p that of place p; ours do not move."""
    golden = hub.read(file)
    model = methods.adapted(golden, attn_implementation="eager")
    assert max(errors(model, golden, "a")) > 0.01
    length = next(c for c in methods.configs(golden.config) if c.method == "prefix").num_virtual_tokens
    biased: dict[int, nn.Module] = {}
    for stack in (model.encoder, model.decoder):
        attention = stack.block[0].layer[0].SelfAttention
        for block in stack.block:
            biased[id(block.layer[0].SelfAttention)] = attention

    def shifted(self, module, query, key, value, mask, **options):
        (part,) = self.parts
        keys, values = (torch.stack([side[0]] * query.shape[0]) for side in (part.keys, part.values))
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        owner = biased.get(id(module))
        if owner is not None:
            options["position_bias"] = owner.compute_bias(query.shape[2], key.shape[2], device=query.device)
        else:
            options["position_bias"] = nn.functional.pad(options["position_bias"], (length, 0))
        mask = None if mask is None else nn.functional.pad(mask, (length, 0))
        return self.stock(module, query, key, value, mask, **options)

    monkeypatch.setattr(PrefixAttention, "__call__", shifted)
    assert max(errors(model, golden, "a")) <= 1e-5
