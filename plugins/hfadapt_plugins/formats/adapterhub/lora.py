"""AdapterHub's LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.architecture import is_linear, linear_sizes
from hfadapt.runtime import deltas_of

from ...methods.lora import LoRA
from .folder import Tensors, refused

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import Delta, MethodConfig

__all__ = ["KEYS", "is_fused", "lora_configs", "lora_weights", "updated_linears"]

KEYS = {"lora_a": "lora_A", "lora_b": "lora_B", "gate_weight": "gate.weight", "gate_bias": "gate.bias"}
_ROLES = {"q": "query", "k": "key", "v": "value"}


def lora_configs(
    config: Mapping[str, Any], tensors: Tensors, model: PreTrainedModel, alpha_is_r: bool
) -> tuple[MethodConfig, ...]:
    """Return our configs of AdapterHub's: one for plain linears, one for those that make queries, keys and values.

    Args:
        config: Its fields, checked.
        tensors: Of the file, whose names say which linears are updated.
        model: The base.
        alpha_is_r: Written by a release that left alpha out of the computation.

    Raises:
        CheckpointError: a linear is not there, or the tensors are of another rank than the config says.
    """
    if config.get("composition_mode", "add") != "add":
        raise refused(
            "a LoRA that scales, which is (IA)^3",
            tensors.folder,
            f"composition_mode={config['composition_mode']!r}",
            "merge it with adapters (merge_adapter), or train hfadapt-plugin-ia3's IA3 anew",
        )
    if config.get("use_dora"):
        raise refused(
            "DoRA as adapters computes it: its norm leaves alpha / r out, and it scales the bias",
            tensors.folder,
            "use_dora=True",
            "merge it with adapters (merge_adapter), and adapt what comes out",
        )
    r, gated = config.get("r", 8), bool(config.get("use_gating"))
    # A gate takes the place of alpha / r.
    alpha = r if gated or alpha_is_r else config.get("alpha", 8)
    more = {"dropout": config.get("dropout", 0.0), "gate": "mean_padded" if gated else "none"}
    owners = tensors.owners("loras")
    if not owners:
        raise refused("the file holds no LoRA", tensors.folder, f"none of {tensors.name!r}")
    _check_places(config, tensors, owners)
    plain, fused = [], []
    for owner in owners:
        path = f"{tensors.prefix}{owner}"
        module = model.get_submodule(path) if path in dict(model.named_modules()) else None
        if module is None or not is_linear(module):
            got = f"{owner} (of {len(owners)}) on {type(model).__name__}"
            raise refused(
                "the adapter is of another base: it updates linears that this model has not", tensors.folder, got
            )
        parts = is_fused(tensors, path)
        rank = tensors.take(f"{owner}.loras.{tensors.name}.lora_A").shape[0]
        count = len(config.get("attn_matrices", ("q", "v"))) if parts else 1
        if rank != r * count:
            raise refused("the matrices do not have the config's rank", tensors.folder, f"{rank} at {owner}, r={r}")
        (fused if parts else plain).append(path)
    made: list[MethodConfig] = []
    if plain:
        made.append(LoRA(r, alpha, tuple(plain), **more))
    if fused:
        if gated:
            raise refused("gates of a linear that makes queries, keys and values", tensors.folder, "use_gating=True")
        count = len(config.get("attn_matrices", ("q", "v")))
        # As one update of the whole linear, whose B is zero wherever it changes nothing.
        made.append(LoRA(r * count, alpha * count, tuple(fused), **more))
    return tuple(made)


def is_fused(tensors: Tensors, path: str) -> bool:
    """Say whether a linear makes queries, keys and values at once."""
    attentions = [
        a for layer in tensors.arch.layers() for a in (layer.attention, layer.cross_attention) if a is not None
    ]
    return any(attention.fused == path for attention in attentions)


def _check_places(config: Mapping[str, Any], tensors: Tensors, owners: Mapping[str, Any]) -> None:
    """Raise unless the file has an update wherever the config says so, and nowhere else.

    Which linear is "intermediate" and which "output" differs with the model (in Llama they stand the other way round),
    so that for these the number counts.
    """
    from .layers import numbers

    out, number = set(config.get("leave_out") or ()), numbers(tensors.arch)
    matrices = config.get("attn_matrices", ("q", "v")) if config.get("selfattn_lora", True) else ()
    others = int(bool(config.get("intermediate_lora"))) + int(bool(config.get("output_lora")))
    wanted: dict[str, set[str]] = {}
    for layer in tensors.arch.layers():
        if number[(layer.stack.path, layer.index)] in out:
            continue
        leaves = wanted.setdefault(layer.path, set())
        for attention in (layer.attention, layer.cross_attention):
            if attention is not None and matrices:
                found = [getattr(attention, _ROLES[letter]) or attention.fused for letter in matrices]
                leaves.update(tensors.relative(leaf) for leaf in found if leaf is not None)
    attended = set().union(*wanted.values()) if wanted else set()
    rest = [owner for owner in owners if owner not in attended]
    missing = sorted(attended - set(owners))
    if missing or len(rest) != others * len(wanted):
        got = (
            f"{missing[0]} is not in the file" if missing else f"{len(rest)} beside attention, in {len(wanted)} layers"
        )
        raise refused("the file updates other linears than its config says", tensors.folder, got)


def updated_linears(
    model: PreTrainedModel, name: str, tensors: Tensors, method: str
) -> Iterator[tuple[str, Delta, str]]:
    """Yield path, delta and the file's name of the linear for every update of an adapter that a method made.

    Raises:
        CheckpointError: the file has no update of that linear.
    """
    owners = tensors.owners("loras")
    for path, delta in deltas_of(model, name):
        if delta.config(name).method != method:
            continue
        owner = tensors.relative(delta.site.leaf)
        if owner not in owners:
            got = f"{owner} is meant by the same name as a linear of the file"
            raise refused("linears cannot be told apart by their paths", tensors.folder, got)
        yield path, delta, owner


def lora_weights(model: PreTrainedModel, name: str, tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of our parameters of an adapter, by the model's names for them."""
    found: dict[str, Tensor] = {}
    for path, delta, owner in updated_linears(model, name, tensors, "lora"):
        fused = is_fused(tensors, delta.site.leaf)
        for ours, _ in delta.own(name).named_parameters():
            tensor = tensors.take(f"{owner}.loras.{tensors.name}.{KEYS[ours]}")
            if fused and ours == "lora_b":
                outputs = linear_sizes(model.get_submodule(delta.site.leaf))[1]
                tensor = _spread(tensors, tensor, config.get("attn_matrices", ["q", "v"]), outputs)
            found[f"{path}.adapters.{name}.{ours}"] = tensor
    return found


def _spread(tensors: Tensors, b: Tensor, matrices: list[str], outputs: int) -> Tensor:
    """Return ``[O, N R]`` of the N updates ``[N O / 3, R]`` of a linear that makes queries, keys and values."""
    parts = [one for one in ("q", "k", "v") if one in matrices]
    size = outputs // 3
    if b.dim() != 2 or b.shape[0] != size * len(parts):
        raise refused("an update of a fused linear has another shape", tensors.folder, list(b.shape))
    r = b.shape[1]
    whole = torch.zeros(outputs, r * len(parts), dtype=b.dtype)
    for number, part in enumerate(parts):
        rows = slice("qkv".index(part) * size, ("qkv".index(part) + 1) * size)
        whole[rows, number * r : (number + 1) * r] = b[number * size : (number + 1) * size]
    return whole
