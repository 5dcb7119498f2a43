"""The map of AdapterHub's configs and names serves every case of its index, also those whose file is not here.

Their weights are made from the names and shapes that the files here show: RoBERTa's are BERT's, and T5's differ by the
sub-layers that have an adapter and by three pools of prefixes in place of one.
"""

from __future__ import annotations

import json

import golden_adapterhub_runs as runs
import pytest
import torch
from golden_adapterhub_runs import LAYERS, NAMES, Golden, read
from golden_files import close, starting_with
from torch import Tensor
from transformers import PreTrainedModel, RobertaConfig, RobertaModel

import hfadapt

INDEX = {k: v for k, v in json.loads((runs.DATA / "index.json").read_text()).items() if k != "versions"}
MISSING = [name for name in INDEX if name.replace("/", "_", 1) not in runs.available()]


def roberta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let RoBERTa's base be random: its weights are not here."""
    config = RobertaConfig(vocab_size=60, hidden_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
                           intermediate_size=40, max_position_embeddings=20)  # fmt: skip
    monkeypatch.setattr(runs, "base", lambda *args, **more: RobertaModel(config).double().eval())


def weights_of(case: str) -> dict[str, Tensor]:
    """Weights of both adapters by AdapterHub's names."""
    arch, _, kind = case.partition("/")
    if arch == "roberta":
        return read(f"bert_{kind}").tensors
    found: dict[str, Tensor] = {}
    if kind in ("double_seq_bn_houlsby", "par_bn_scaled", "mam"):
        found |= starting_with(read("t5_seq_bn_pfeiffer").tensors, "new.")
    if kind == "double_seq_bn_houlsby":
        # The self-attention is the first sub-layer of a block; cross-attention has an adapter only when asked for.
        ffn = {"encoder": "layer.1", "decoder": "layer.2"}
        found |= {k.replace(ffn[k.split(".")[0]], "layer.0"): v + 0.1 for k, v in found.items()}
    if kind in ("prefix_mlp", "mam"):
        pool = "encoder.block.0.layer.0.SelfAttention.prefix_tuning.pool.prefix_tunings"
        one = starting_with(read("bert_prefix_mlp").tensors, "new.encoder.layer.0.attention.self.prefix_tuning.pool.")
        for which in ("self", "cross", "encoder"):
            for key, value in one.items():
                name = key.removeprefix("prefix_tunings").replace("self_prefix", f"{which}_prefix")
                found[pool + name] = value
    return {f"new.{k}": v for k, v in found.items()}


def test_what_is_missing_is_roberta_and_the_rest_of_t5() -> None:
    assert {name.partition("/")[0] for name in MISSING} <= {"roberta", "t5"}


@pytest.mark.parametrize("case", MISSING)
def test_every_weight_has_its_place(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = case.partition("/")[0]
    if arch == "roberta":
        roberta(monkeypatch)
    golden = Golden(arch, INDEX[case]["config"], weights_of(case))
    given = starting_with(golden.tensors, "new.")
    assert sum(v.numel() for v in given.values()) == INDEX[case]["n_new"]
    model = runs.adapted(golden)
    handle = sum(p.numel() for name in NAMES for p in hfadapt.parameters_of(model, name).values())
    assert handle == INDEX[case]["n_new"]
    golden.tensors.update(inputs(arch))
    alone = [runs.run(model, golden, name)["hidden"][-1] for name in NAMES]
    assert (alone[0] - runs.run(model, golden, "base")["hidden"][-1]).abs().max() > 0.01
    close(runs.run(model, golden, "parallel")["hidden"][-1], torch.cat(alone), "parallel")
    assert torch.equal(runs.run(model, golden, "a.drop3")["hidden"][-1], runs.run(model, golden, "base")["hidden"][-1])


def inputs(arch: str) -> dict[str, Tensor]:
    file = "t5_lora_qv" if arch == "t5" else "bert_lora_qv"
    return {k: v for k, v in read(file).tensors.items() if k.startswith("input.")}


GATED_LORA = {**INDEX["bert/lora_qv"]["config"], "use_gating": True, "alpha": 64}
GATED_PREFIX = {**INDEX["bert/prefix_mlp"]["config"], "use_gating": True}
GATED_ADAPTER = {**INDEX["bert/seq_bn_pfeiffer"]["config"], "use_gating": True}


def test_unipelt_in_its_formulas() -> None:
    """Gates are averaged over all positions; LoRA's takes the place of alpha / r; the prefix's is a factor on P."""
    union = {"architecture": "union", "configs": [GATED_LORA, GATED_PREFIX, GATED_ADAPTER]}
    weights = {
        k: v for kind in ("lora_qv", "prefix_mlp", "seq_bn_pfeiffer") for k, v in read(f"bert_{kind}").tensors.items()
    }
    layers = range(LAYERS)
    gates = {}
    for name in NAMES:
        for layer in layers:
            attention = f"encoder.layer.{layer}.attention.self"
            for owner in (
                f"{attention}.query.loras.{name}.gate",
                f"{attention}.value.loras.{name}.gate",
                f"{attention}.prefix_tuning.prefix_gates.{name}",
                f"encoder.layer.{layer}.output.adapters.{name}.gate",
            ):
                gates[f"new.{owner}.weight"], gates[f"new.{owner}.bias"] = (
                    torch.randn(1, 24).double(),
                    torch.ones(1).double(),
                )
    golden = Golden("bert", union, {k: v for k, v in weights.items() if k.startswith(("new.", "input."))} | gates)
    model = runs.adapted(golden, attn_implementation="eager")
    found = runs.run(model, golden, "a")["hidden"][-1]
    close(found, unipelt(runs.base("bert"), starting_with(golden.tensors, "new."), golden), "last hidden state")


def unipelt(model: PreTrainedModel, w: dict[str, Tensor], golden: Golden) -> Tensor:
    """Adapter ``a`` in plain tensor algebra on the stock model's linears."""
    given = starting_with(golden.tensors, "input.")
    h = model.embeddings(given["input_ids"])
    hidden = (given["attention_mask"] == 0)[:, None, None, :]
    prefix = "encoder.layer.0.attention.self.prefix_tuning.pool.prefix_tunings.a.self_prefix"
    inner = torch.tanh(
        w[f"{prefix}.wte.weight"] @ w[f"{prefix}.control_trans.0.weight"].T + w[f"{prefix}.control_trans.0.bias"]
    )
    table = (inner @ w[f"{prefix}.control_trans.2.weight"].T + w[f"{prefix}.control_trans.2.bias"]).view(
        -1, 2 * LAYERS, 4, 6
    )

    def gate(x: Tensor, owner: str) -> Tensor:
        return torch.sigmoid(x @ w[f"{owner}.weight"].T + w[f"{owner}.bias"]).mean(1, keepdim=True)

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (4, 6)).transpose(1, 2)

    for index, layer in enumerate(model.encoder.layer):
        at, name = layer.attention.self, f"encoder.layer.{index}.attention.self"

        def lora(linear: torch.nn.Linear, which: str, x: Tensor = h, name: str = name) -> Tensor:
            owner = f"{name}.{which}.loras.a"
            return linear(x) + gate(x, f"{owner}.gate") * (x @ w[f"{owner}.lora_A"].T @ w[f"{owner}.lora_B"].T)

        q, k, v = heads(lora(at.query, "query")), heads(at.key(h)), heads(lora(at.value, "value"))
        g = gate(h, f"{name}.prefix_tuning.prefix_gates.a").unsqueeze(-1)
        pk, pv = (g * table[:, 2 * index + side].transpose(0, 1) for side in (0, 1))
        k, v = torch.cat([pk, k], 2), torch.cat([pv, v], 2)
        seen = torch.nn.functional.pad(hidden, (pk.shape[2], 0), value=False)
        weights = torch.softmax((q @ k.transpose(-1, -2) / 6**0.5).masked_fill(seen, -torch.inf), -1)
        a = layer.attention.output((weights @ v).transpose(1, 2).flatten(2), h)
        f = layer.output.dense(layer.intermediate(a))
        owner, z = f"encoder.layer.{index}.output.adapters.a", layer.output.LayerNorm(f + a)
        low = torch.relu(z @ w[f"{owner}.adapter_down.0.weight"].T + w[f"{owner}.adapter_down.0.bias"])
        up = low @ w[f"{owner}.adapter_up.weight"].T + w[f"{owner}.adapter_up.bias"]
        h = layer.output.LayerNorm(f + gate(z, f"{owner}.gate") * up + a)
    return h.detach()
