"""Every run of AdapterHub's goldens in float64; where it has a defect, a test shows the difference."""

from __future__ import annotations

import golden_adapterhub as hub
import golden_adapterhub_runs as runs
import pytest
import torch
from golden_adapterhub_runs import NAMES, adapted, errors, read, run
from golden_files import TOLERANCE, close
from torch import nn
from transformers.models.t5 import modeling_t5

from hfadapt.runtime import source_of
from hfadapt_plugins.methods.fusion import FusionLayer
from hfadapt_plugins.methods.prefix.attend import PrefixAttention

FILES = runs.available()
FUSED = [f for f in FILES if any(t.startswith("fuse") for t in read(f).tags)]
PARALLEL = [f for f in FILES if "par_bn" in f]
SHIFTED = [f for f in FILES if f.startswith("t5") and ("prefix" in f or "mam" in f)]
# The goldens hold a softmax in float32, which torch sums lane by lane. With its prefix a row has 9 keys or more, past
# the 8 lanes of AVX2: its sums are those of the goldens to the bit with AVX-512, and elsewhere as float32 rounds them.
MORE_KEYS_THAN_LANES = TOLERANCE if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1e-6
CASES = [
    (file, tag)
    for file in FILES
    for tag in read(file).tags
    if not (file in PARALLEL and tag.startswith("fuse")) and not (file in SHIFTED and tag != "base")
]


@pytest.fixture(autouse=True)
def t5_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's attention had its softmax in float32 then; with that the tolerance of float64 holds for T5 too."""
    monkeypatch.setattr(modeling_t5, "eager_attention_forward", runs.softmax_in_float32)


def make(file: str, implementation: str = "eager") -> tuple[nn.Module, runs.Golden]:
    golden = read(file)
    model = adapted(golden, attn_implementation=implementation)
    if file in FUSED:
        runs.add_fusion(model, golden)
    return model, golden


@pytest.mark.parametrize(("file", "tag"), CASES, ids=lambda v: v)
def test_hidden_states(file: str, tag: str) -> None:
    model, golden = make(file)
    assert max(errors(model, golden, tag)) <= TOLERANCE


@pytest.mark.parametrize(("file", "tag"), [c for c in CASES if c[1] in ("a", "parallel")], ids=lambda v: v)
def test_hidden_states_with_sdpa(file: str, tag: str) -> None:
    model, golden = make(file, "sdpa")
    assert max(errors(model, golden, tag)) <= (1e-5 if golden.arch == "t5" else TOLERANCE)


@pytest.mark.parametrize("file", PARALLEL)
def test_parallel_composition_of_parallel_adapters(file: str) -> None:
    """AdapterHub raises here, because it does not replicate the sub-layer's output (trap 35)."""
    model, golden = make(file)
    assert "parallel" not in golden.tags
    together = run(model, golden, "parallel")
    alone = [run(model, golden, name) for name in NAMES]
    for part, states in together.items():
        close(states[-1], torch.cat([one[part][-1] for one in alone]), part)


@pytest.mark.parametrize("tag", ["fuse", "fuse.drop1"])
@pytest.mark.parametrize("file", [f for f in FUSED if f in PARALLEL])
def test_fusion_of_parallel_adapters_adds_the_residual_once(
    file: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdapterHub adds the sub-layer's input once as the fusion's residual and once more before the norm."""
    model, golden = make(file)
    assert max(errors(model, golden, tag)) > 0.01
    once = FusionLayer.forward

    def twice(self, value, leaf_input, leaf, routing, index):
        delta = leaf.hfadapt.side(self.side)[0]
        return once(self, value, leaf_input, leaf, routing, index) + source_of(delta, value, leaf_input, routing)

    monkeypatch.setattr(FusionLayer, "forward", twice)
    assert max(errors(model, golden, tag)) <= TOLERANCE


@pytest.mark.parametrize("tag", ["a", "b", "a.drop1", "parallel"])
@pytest.mark.parametrize("file", SHIFTED)
def test_t5_prefix_leaves_the_relative_bias_of_real_keys(file: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdapterHub gives real key j the bias of place j + l, and prefix key p that of place p; ours do not move.

    Where the first layer, whose bias all layers share, has no prefix, the others find a bias that is too short, and
    AdapterHub works out another one without the table: zeros.
    """
    model, golden = make(file)
    assert max(errors(model, golden, tag)) > 0.01
    prefix = next(c for c in hub.configs(golden.config, runs.LAYERS) if c.method == "prefix")
    length = prefix.num_virtual_tokens
    first = {
        id(block.layer[0].SelfAttention): stack.block[0].layer[0].SelfAttention
        for stack in (model.encoder, model.decoder)
        for block in stack.block
    }
    dropped = {id(block.layer[0].SelfAttention) for block in model.encoder.block} if ".drop" in tag else set()

    def shifted(self, module, query, key, value, mask, **options):
        (part,) = self.parts
        rows = part.batch.ids
        keys, values = (torch.stack(side)[rows] for side in (part.keys, part.values))
        key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        if id(module) in dropped:
            options["position_bias"] = torch.zeros(1, 1, query.shape[2], key.shape[2], dtype=key.dtype)
        elif id(module) in first:
            bias = first[id(module)].compute_bias(query.shape[2], key.shape[2], device=query.device)
            options["position_bias"] = bias
        else:
            options["position_bias"] = nn.functional.pad(options["position_bias"], (length, 0))
        mask = None if mask is None else nn.functional.pad(mask, (length, 0))
        return self.stock(module, query, key, value, mask, **options)

    monkeypatch.setattr(PrefixAttention, "__call__", shifted)
    assert max(errors(model, golden, tag)) <= MORE_KEYS_THAN_LANES
