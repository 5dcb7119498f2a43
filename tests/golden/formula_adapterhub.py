"""AdapterHub's adapters on BERT as formulas, evaluated from what its folders hold: a config and weights by name.

A second reading: the layers are written out here, without hfadapt, and with no more of transformers than the base's
own linears and norms, so that configs whose outputs are not at hand can be computed. `layout` gives the names and
shapes that ``save_adapter`` writes for a config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

Config = dict[str, Any]
Weights = dict[str, Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "swish": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
_MATRICES = {"q": "query", "k": "key", "v": "value"}
_POOL = "attention.self.prefix_tuning.pool.prefix_tunings"


def parts_of(config: Config) -> list[Config]:
    """The members of a union, or the config alone."""
    return list(config["configs"]) if config.get("architecture") == "union" else [config]


def layout(config: Config, name: str, base: BertModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of an adapter, without the repetitions of a pooled prefix."""
    d, layers = base.config.hidden_size, base.config.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts_of(config):
        kind = part.get("architecture")
        for index in (i for i in range(layers) if i not in part.get("leave_out", ())):
            at = f"encoder.layer.{index}"
            if kind == "lora":
                for path in _lora_places(part):
                    inner, outer = base.get_submodule(f"{at}.{path}").weight.shape[::-1]
                    owner = f"{at}.{path}.loras.{name}"
                    shapes |= {f"{owner}.lora_A": (part["r"], inner), f"{owner}.lora_B": (outer, part["r"])}
                    shapes |= _gate(owner + ".gate", inner) if part["use_gating"] else {}
            elif kind == "mtl_lora":
                for path in _lora_places(part):
                    inner, outer = base.get_submodule(f"{at}.{path}").weight.shape[::-1]
                    owner, count = f"{at}.{path}.loras.{name}", part["n_up_projection"]
                    shapes |= {f"{owner}.lora_A": (part["r"], inner), f"{owner}.lora_B": (count, outer, part["r"])}
                    shapes |= {f"{owner}.weights": (count,), f"{owner}.task_specific.values": (part["r"],)}
            elif kind == "prefix_tuning" and part["use_gating"]:
                shapes |= _gate(f"{at}.attention.self.prefix_tuning.prefix_gates.{name}", d)
            elif kind is None:
                for place, path in (("mh_adapter", "attention.output"), ("output_adapter", "output")):
                    if part[place]:
                        shapes |= _bottleneck_layout(part, f"{at}.{path}.adapters.{name}", d)
        if kind == "prefix_tuning":
            count, pool = layers - len(part["leave_out"]), f"encoder.layer.0.{_POOL}.{name}.self_prefix"
            if part["flat"]:
                shapes[f"{pool}.control_trans"] = (part["prefix_length"] * 2 * count * d,)
            else:
                middle, made = part["bottleneck_size"], 2 * count * d
                shapes |= {f"{pool}.wte.weight": (part["prefix_length"], d)}
                shapes |= {f"{pool}.control_trans.0.weight": (middle, d), f"{pool}.control_trans.0.bias": (middle,)}
                shapes |= {f"{pool}.control_trans.2.weight": (made, middle), f"{pool}.control_trans.2.bias": (made,)}
    return shapes


def _gate(owner: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{owner}.weight": (1, width), f"{owner}.bias": (1,)}


def _bottleneck_layout(part: Config, owner: str, d: int) -> dict[str, tuple[int, ...]]:
    r, first = d // part["reduction_factor"], int(part["ln_before"])
    shapes = {f"{owner}.adapter_down.{first}.weight": (r, d), f"{owner}.adapter_down.{first}.bias": (r,)}
    shapes |= {f"{owner}.adapter_up.weight": (d, r), f"{owner}.adapter_up.bias": (d,)}
    for side in ("before", "after"):
        if part[f"ln_{side}"]:
            shapes |= {f"{owner}.adapter_norm_{side}.{kind}": (d,) for kind in ("weight", "bias")}
    if isinstance(part["scaling"], str):
        shapes[f"{owner}.scaling"] = (1,) if part["scaling"] == "learned" else (d,)
    return shapes | (_gate(f"{owner}.gate", d) if part["use_gating"] else {})


def _lora_places(part: Config) -> list[str]:
    paths = [f"attention.self.{_MATRICES[m]}" for m in part["attn_matrices"]] if part["selfattn_lora"] else []
    paths += ["intermediate.dense"] if part["intermediate_lora"] else []
    return paths + (["output.dense"] if part["output_lora"] else [])


class Formula:
    """One adapter of AdapterHub's on a BERT.

    Args:
        base: In evaluation mode.
        config: The content of ``adapter_config.json`` under ``config``.
        name: AdapterHub's name of the adapter.
        weights: By AdapterHub's names.
    """

    def __init__(self, base: BertModel, config: Config, name: str, weights: Weights) -> None:
        self.base, self.name, self.w = base, name, weights
        self.parts = parts_of(config)
        self.heads = base.config.num_attention_heads

    def of(self, kind: str | None, index: int) -> Config | None:
        """The part of a kind at a layer."""
        found = [p for p in self.parts if p.get("architecture") == kind and index not in p["leave_out"]]
        return found[0] if found else None

    def gate(self, x: Tensor, owner: str) -> Tensor:
        """``sigmoid(w x + b)`` averaged over all positions, ``[B, 1, 1]``."""
        return torch.sigmoid(F.linear(x, self.w[f"{owner}.weight"], self.w[f"{owner}.bias"])).mean(1, keepdim=True)

    def linear(self, index: int, path: str, x: Tensor) -> Tensor:
        """A linear of the base with its low-rank update."""
        module = self.base.get_submodule(f"encoder.layer.{index}.{path}")
        part = self.of("lora", index) or self.of("mtl_lora", index)
        y, owner = module(x), f"encoder.layer.{index}.{path}.loras.{self.name}"
        if part is None or path not in _lora_places(part):
            return y
        if part["architecture"] == "mtl_lora":
            shares = torch.softmax(self.w[f"{owner}.weights"] / part["weights_sharpness"], 0)
            up = torch.einsum("n,nor->or", shares, self.w[f"{owner}.lora_B"])
            inner = (x @ self.w[f"{owner}.lora_A"].T) * self.w[f"{owner}.task_specific.values"]
            return y + part["alpha"] / part["r"] * inner @ up.T
        scale = self.gate(x, f"{owner}.gate") if part["use_gating"] else part["alpha"] / part["r"]
        return y + scale * (x @ self.w[f"{owner}.lora_A"].T @ self.w[f"{owner}.lora_B"].T)

    def prefix(self, index: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values ``[B, H, P, K]`` of a layer."""
        part = self.of("prefix_tuning", index)
        if part is None:
            return None
        end = f".prefix_tunings.{self.name}.self_prefix."
        pool = {k.partition(end)[2]: v for k, v in self.w.items() if end in k}
        if part["flat"]:
            table = pool["control_trans"]
        else:
            middle = torch.tanh(
                F.linear(pool["wte.weight"], pool["control_trans.0.weight"], pool["control_trans.0.bias"])
            )
            table = F.linear(middle, pool["control_trans.2.weight"], pool["control_trans.2.bias"])
        table = table.reshape(part["prefix_length"], -1, self.heads, x.shape[-1] // self.heads)
        number = 2 * [i for i in range(99) if i not in part["leave_out"]].index(index)
        pair = (table[:, number + side].transpose(0, 1).expand(x.shape[0], -1, -1, -1) for side in (0, 1))
        if part["use_gating"]:
            g = self.gate(x, f"encoder.layer.{index}.attention.self.prefix_tuning.prefix_gates.{self.name}")
            pair = (g.unsqueeze(-1) * t for t in pair)
        key, value = pair
        return key, value

    def attention(self, index: int, x: Tensor, seen: Tensor) -> Tensor:
        """The attention's concatenated heads."""
        q, k, v = (
            self.linear(index, f"attention.self.{n}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        more = self.prefix(index, x)
        if more is not None:
            k, v = torch.cat([more[0], k], 2), torch.cat([more[1], v], 2)
            seen = F.pad(seen, (more[0].shape[2], 0), value=True)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~seen[:, None, None, :], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def reads(self, part: Config, h: Tensor, x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """What a serial adapter reads, and the residual that is added to its result."""
        read = (norm(h + x) if part["original_ln_before"] else h) if not part["is_parallel"] else x
        return read, h if part["residual_before_ln"] or part["is_parallel"] else read

    def delta(self, part: Config, owner: str, read: Tensor, residual: Tensor) -> Tensor:
        """``u(read)``, without the residual; its own norm may cover that."""
        first, w = int(part["ln_before"]), self.w
        inner = read
        if part["ln_before"]:
            inner = F.layer_norm(
                read, read.shape[-1:], w[f"{owner}.adapter_norm_before.weight"], w[f"{owner}.adapter_norm_before.bias"]
            )
        inner = F.linear(inner, w[f"{owner}.adapter_down.{first}.weight"], w[f"{owner}.adapter_down.{first}.bias"])
        up = F.linear(
            _ACTIVATIONS[part["non_linearity"]](inner), w[f"{owner}.adapter_up.weight"], w[f"{owner}.adapter_up.bias"]
        )
        up = up * (w[f"{owner}.scaling"] if isinstance(part["scaling"], str) else part["scaling"])
        if part["use_gating"]:
            up = up * self.gate(read, f"{owner}.gate")
        covered = part["adapter_residual_before_ln"] and not part["is_parallel"]
        up = up + residual if covered else up
        if part["ln_after"]:
            up = F.layer_norm(
                up, up.shape[-1:], w[f"{owner}.adapter_norm_after.weight"], w[f"{owner}.adapter_norm_after.bias"]
            )
        return up - residual if covered else up

    def close(self, index: int, path: str, place: str, h: Tensor, x: Tensor) -> Tensor:
        """The norm that closes a sub-layer with output h and residual x, with what an adapter does there."""
        norm, part = self.base.get_submodule(f"encoder.layer.{index}.{path}.LayerNorm"), self.of(None, index)
        if part is None or not part[place]:
            return norm(h + x)
        read, residual = self.reads(part, h, x, norm)
        out = self.delta(part, f"encoder.layer.{index}.{path}.adapters.{self.name}", read, residual) + residual
        return norm(out + x) if part["original_ln_after"] else out

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """The last hidden state."""
        return self.run(inputs, lambda index, path, place, h, x: self.close(index, path, place, h, x))

    def run(self, inputs: dict[str, Tensor], close: Callable[[int, str, str, Tensor, Tensor], Tensor]) -> Tensor:
        """The last hidden state, with ``close`` at the end of each sub-layer."""
        x = self.base.embeddings(inputs["input_ids"], token_type_ids=inputs.get("token_type_ids"))
        seen = inputs["attention_mask"].bool()
        for index, layer in enumerate(self.base.encoder.layer):
            u = layer.attention.output.dense(self.attention(index, x, seen))
            a = close(index, "attention.output", "mh_adapter", u, x)
            f = self.linear(index, "output.dense", F.gelu(self.linear(index, "intermediate.dense", a)))
            x = close(index, "output", "output_adapter", f, a)
        return x.detach()


def fused(adapters: Sequence[Formula], fusion: Weights, config: Config, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden state of AdapterFusion over serial adapters of one config behind the FFN."""
    key = ",".join(a.name for a in adapters)

    def close(index: int, path: str, place: str, h: Tensor, x: Tensor) -> Tensor:
        norm = adapters[0].base.get_submodule(f"encoder.layer.{index}.{path}.LayerNorm")
        part = adapters[0].of(None, index)
        if part is None or not part[place]:
            return norm(h + x)
        read, residual = adapters[0].reads(part, h, x, norm)
        us = torch.stack(
            [a.delta(part, f"encoder.layer.{index}.{path}.adapters.{a.name}", read, residual) for a in adapters], 2
        )
        owner = f"encoder.layer.{index}.{path}.adapter_fusion_layer.{key}"

        def project(which: str, t: Tensor) -> Tensor:
            return (
                F.linear(t, fusion[f"{owner}.{which}.weight"], fusion.get(f"{owner}.{which}.bias"))
                if config[which]
                else t
            )

        query = project("query", h if config["query_before_ln"] else read)
        weights = (project("key", us) @ query.unsqueeze(-1)).squeeze(-1).softmax(-1)
        return norm((weights.unsqueeze(2) @ project("value", us)).squeeze(2) + residual + x)

    return adapters[0].run(inputs, close)


__all__ = ["Formula", "fused", "layout", "parts_of"]
