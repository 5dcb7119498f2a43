"""Reads the goldens of the PALs repository: base weights into a stock BERT, task weights into our adapters.

Names map as follows. ``encoder.layer.L.multi_layers.T`` is the task function beside layer L: ``aug_dense`` is V_E,
``aug_dense2`` V_D, ``attn.{query,key,value}`` the attention between them. ``encoder.mult_aug_dense.T`` and
``mult_aug_dense2.T`` are V_E and V_D that all layers of task T share. ``multi_lhuc.T.lhuc`` is LHUC.
``attention.output.multi_layers.T`` and ``output.multi_layers.T`` are the positions of the Houlsby-like model.
``encoder.mult_dense.T``, ``multi_layers.T.N`` and ``mult_dense2.T`` are projected attention on top, or
``multi_layers.T`` a whole BERT layer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from golden_files import DATA as ALL_DATA
from golden_files import Filler, metadata_of, starting_with, tensors_of
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import hfadapt
from hfadapt import MethodConfig

DATA = ALL_DATA / "pals"
TASKS = ("task0", "task1")


@dataclass
class Golden:
    """One file: what the reference was built from, was given, and gave."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    placement: str = "all"
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.weights = starting_with(self.tensors, "weight.")

    def input(self, name: str) -> Tensor:
        return self.tensors[f"input.{name}"]

    def output(self, name: str) -> Tensor:
        return self.tensors[f"output.{name}"]


def read(name: str, folder: Path = DATA) -> Golden:
    """Read one golden."""
    path = folder / f"{name}.safetensors"
    index = json.loads((folder / "index.json").read_text())
    return Golden(metadata_of(path, "config"), tensors_of(path), index[name]["placement"])


def method_of(golden: Golden) -> MethodConfig | tuple[MethodConfig, ...] | None:
    """Return the method config that computes what the reference's options compute."""
    options, layers = golden.config, "all"
    match = re.fullmatch(r"(top|bottom)(\d+)", golden.placement)
    if match:
        count, total = int(match[2]), options["num_hidden_layers"]
        layers = tuple(range(count)) if match[1] == "bottom" else tuple(range(total - count, total))
    size = options.get("hidden_size_aug")
    lhuc = bool(options.get("lhuc"))
    code_form = {"activation": "gelu", "layers": layers}
    if options.get("top"):
        if options.get("bert_lay_top"):
            return hfadapt.TopLayer()
        return hfadapt.TopAttention(size=size, num_heads=12)
    low = options.get("extra_dim") or size  # of low-rank functions, not of PALs
    if options.get("houlsby"):
        attention = hfadapt.Bottleneck(low, on=("attention",), non_linearity="gelu", layers=layers)
        if options.get("pals"):
            return attention, hfadapt.PAL(size, num_heads=6, position="ffn", lhuc=lhuc, **code_form)
        return attention, hfadapt.Bottleneck(low, on=("ffn",), is_parallel=True, non_linearity="gelu", layers=layers)
    if options.get("pals"):
        return hfadapt.PAL(size, num_heads=6, lhuc=lhuc, **code_form)
    if options.get("mult"):
        return hfadapt.LowRank(low, lhuc=lhuc, **code_form)
    return hfadapt.LHUC(layers=layers) if lhuc else None


def base(golden: Golden, **more: Any) -> BertModel:
    """Return a stock BERT in float64 and evaluation mode with the reference's base weights."""
    known = set(BertConfig().to_dict())
    config = BertConfig(**{k: v for k, v in golden.config.items() if k in known and k != "num_labels"}, **more)
    model = BertModel(config).double().eval()
    renamed = {hf_name(k): v for k, v in golden.weights.items() if k.startswith("bert.")}
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in renamed and "position_ids" not in k]
    assert not missing, missing
    model.load_state_dict({k: v for k, v in renamed.items() if k in wanted}, strict=False)
    return model


def hf_name(name: str) -> str:
    """Return transformers' name of one of the reference's base weights."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def reference_name(path: str, task: int) -> str:
    """Return the reference's name of one of our parameters.

    Args:
        path: As ``hfadapt.parameters_of`` names it.
        task: Its task.
    """
    suffix = "bias" if path.endswith("_bias") else "weight"
    leaf = path.rpartition(".")[2].removesuffix("_bias")
    if "top_" in path:
        return _top_name(path, task)
    if path.startswith("hfadapt_shared"):
        return f"bert.encoder.mult_aug_dense{'' if leaf == 'encoder' else '2'}.{task}.{suffix}"
    site, _, rest = path.partition(".hfadapt.")
    layer = site.split(".")[2]
    if leaf in ("lhuc", "contribution"):
        return f"bert.encoder.layer.{layer}.multi_lhuc.{task}.lhuc"
    owner = f"bert.encoder.layer.{layer}"
    if "bottleneck" in rest:
        owner += ".attention.output" if "attention" in site else ".output"
    elif "__ffn_sum__" in rest:
        owner += ".output"
    name = {"down": "aug_dense", "up": "aug_dense2", "encoder": "aug_dense", "decoder": "aug_dense2"}.get(leaf)
    return f"{owner}.multi_layers.{task}.{name or f'attn.{leaf}'}.{suffix}"


def _top_name(path: str, task: int) -> str:
    owner = f"bert.encoder.multi_layers.{task}"
    if "top_layer" in path:
        inside = path.partition("encoder_layer.")[2]
        parts = {
            "attention.query": "attention.self.query",
            "attention.key": "attention.self.key",
            "attention.value": "attention.self.value",
            "attention.output": "attention.output.dense",
            "attention.norm": "attention.output.LayerNorm",
            "ffn.linears.0": "intermediate.dense",
            "ffn.linears.1": "output.dense",
            "ffn.norm": "output.LayerNorm",
        }
        part, _, kind = inside.rpartition(".")
        return f"{owner}.{_gamma_beta(parts[part], kind)}"
    inside = path.split(f".adapters.{TASKS[task]}.")[1]
    part, _, kind = inside.rpartition(".")
    if part in ("encoder", "decoder"):
        return f"bert.encoder.mult_dense{'' if part == 'encoder' else '2'}.{task}.{kind}"
    _, number, name = part.split(".")
    parts = {"output": "output.dense", "norm": "output.LayerNorm"}
    return f"{owner}.{number}.{_gamma_beta(parts.get(name, f'self.{name}'), kind)}"


def _gamma_beta(part: str, kind: str) -> str:
    return f"{part}.{ {'weight': 'gamma', 'bias': 'beta'}[kind] if part.endswith('LayerNorm') else kind }"


class Reference(nn.Module):
    """A stock BERT with one adapter a task and the reference's heads."""

    def __init__(self, golden: Golden, **more: Any) -> None:
        super().__init__()
        self.golden = golden
        self.bert = base(golden, **more)
        method = method_of(golden)
        self.adapted = method is not None
        if method is not None:
            hfadapt.attach(self.bert, method, names=TASKS, freeze_base=False)
            self.copy_weights()
        self.heads = nn.ModuleList()
        for task in range(len(TASKS)):
            weight, bias = golden.weights[f"classifier.{task}.weight"], golden.weights[f"classifier.{task}.bias"]
            head = nn.Linear(weight.shape[1], weight.shape[0]).double()
            head.load_state_dict({"weight": weight, "bias": bias})
            self.heads.append(head)

    def copy_weights(self) -> None:
        """Fill every adapter parameter; every task weight of the golden must be used."""
        filler = Filler(self.golden.weights)
        for task, name in enumerate(TASKS):
            for path, parameter in hfadapt.parameters_of(self.bert, name).items():
                filler.copy(parameter, reference_name(path, task))
        aliases = re.compile(r"multi_layers\.\d+\.aug_dense2?\.")
        shared = any(".mult_aug_dense" in k for k in self.golden.weights)
        base = [k for k in self.golden.weights if "multi_" not in k and "mult_" not in k]
        filler.check("", [*base, *(k for k in self.golden.weights if shared and aliases.search(k))])

    def forward(self, task: int) -> dict[str, Tensor]:
        """Return the reference's outputs of one task."""
        g = self.golden
        names = ("input_ids", "attention_mask", "token_type_ids")
        routed = {"task_ids": TASKS[task]} if self.adapted else {}
        out = self.bert(**{n: g.input(n) for n in names}, output_hidden_states=True, **routed)
        found = {f"hidden.{i}": h for i, h in enumerate(out.hidden_states[1:])}
        found["pooled"] = out.pooler_output
        found["logits"] = self.heads[task](out.pooler_output)
        labels = g.input(f"labels.task{task}")
        if found["logits"].shape[-1] == 1:
            found["loss"] = F.mse_loss(found["logits"].view(-1), labels.view(-1).to(found["logits"].dtype)).view(1)
        else:
            found["loss"] = F.cross_entropy(found["logits"], labels.view(-1)).view(1)
        return found

    def named_gradients(self, task: int) -> dict[str, Tensor | None]:
        """Return the gradients by the reference's names."""
        found: dict[str, Tensor | None] = {}
        for name, parameter in self.bert.named_parameters():
            if "hfadapt" not in name:
                key = f"bert.{name}"
                for ours, theirs in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
                    key = key.replace(ours, theirs)
                found[key] = parameter.grad
        if self.adapted:
            for t, name in enumerate(TASKS):
                for path, parameter in hfadapt.parameters_of(self.bert, name).items():
                    found[reference_name(path, t)] = parameter.grad
        for t, head in enumerate(self.heads):
            found |= {f"classifier.{t}.{n}": p.grad for n, p in head.named_parameters()}
        return found


def available() -> list[str]:
    """Names of the goldens that are here."""
    return sorted(path.stem for path in DATA.glob("*.safetensors"))


__all__ = ["DATA", "TASKS", "Golden", "Reference", "available", "base", "method_of", "read", "reference_name"]
