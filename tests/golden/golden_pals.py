"""Reads the goldens of the PALs repository: base weights into a stock BERT, task weights into our adapters."""

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
from hfadapt_plugins.methods.pal.script_names import base_name, parameter_name
from hfadapt_plugins.methods.pal.script_options import OPTIONS, configs_of

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


def method_of(golden: Golden) -> tuple[MethodConfig, ...] | None:
    """Return the method configs that compute what the reference's options compute."""
    options, total = {**OPTIONS, **golden.config}, golden.config["num_hidden_layers"]
    layers = range(total)
    match = re.fullmatch(r"(top|bottom)(\d+)", golden.placement)
    if match:
        layers = layers[: int(match[2])] if match[1] == "bottom" else layers[total - int(match[2]) :]
    return configs_of(options, tuple(layers)) or None


def base(golden: Golden, **more: Any) -> BertModel:
    """Return a stock BERT in float64 and evaluation mode with the reference's base weights."""
    known = set(BertConfig().to_dict())
    config = BertConfig(**{k: v for k, v in golden.config.items() if k in known and k != "num_labels"}, **more)
    model = BertModel(config).double().eval()
    wanted = [k for k in model.state_dict() if "position_ids" not in k]
    model.load_state_dict({k: golden.weights[base_name(k)] for k in wanted}, strict=False)
    return model


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
                filler.copy(parameter, parameter_name(path, task))
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
                found[base_name(name)] = parameter.grad
        if self.adapted:
            for t, name in enumerate(TASKS):
                for path, parameter in hfadapt.parameters_of(self.bert, name).items():
                    found[parameter_name(path, t)] = parameter.grad
        for t, head in enumerate(self.heads):
            found |= {f"classifier.{t}.{n}": p.grad for n, p in head.named_parameters()}
        return found


def available() -> list[str]:
    """Names of the goldens that are here."""
    return sorted(path.stem for path in DATA.glob("*.safetensors"))


__all__ = ["DATA", "TASKS", "Golden", "Reference", "available", "base", "method_of", "read"]
