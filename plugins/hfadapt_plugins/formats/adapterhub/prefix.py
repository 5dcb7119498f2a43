"""AdapterHub's prefix tuning: its network where it has one, or the table that came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.runtime import deltas_of, shared_modules
from hfadapt_kernels import get_activation

from ...methods.prefix import PrefixConfig
from .bottleneck import activation_of
from .folder import Tensors, refused
from .layers import numbers, split_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import MethodConfig

__all__ = ["prefix_configs", "prefix_twins", "prefix_weights"]

_PARTS = {"embedding": "wte.weight", "down": "control_trans.0", "up": "control_trans.2"}
_POOL = "prefix_tuning.prefix_tunings"

#: (path of a stack, its cross-attention), the layers in the order of the table
Places = dict[tuple[str, bool], list[int]]


def _start(tensors: Tensors, where: str) -> str:
    return f"{_POOL}.{tensors.name}.{where}."


def _pools(tensors: Tensors) -> dict[str, str]:
    """Return the groups of prefixes that the file has, and where their tensors stand."""
    found: dict[str, str] = {}
    for middle in (f"{_POOL}.{tensors.name}.", f"prefix_tuning.pool.prefix_tunings.{tensors.name}."):
        for key in tensors.tensors:
            before, there, end = key.partition(middle)
            if there and (not before or middle.startswith("prefix_tuning.pool")):
                found.setdefault(end.partition(".")[0], f"{before}{middle}{end.partition('.')[0]}.")
    return found


def _where(tensors: Tensors, config: Mapping[str, Any], pool: str) -> tuple[str, bool]:
    """Return the stack and kind of attention of a group of prefixes.

    Raises:
        CheckpointError: the model has no such attention.
    """
    stacks = tensors.arch.stacks
    word = pool.removesuffix("_prefix")
    both = len(stacks) > 1
    kind = {"cross": "decoder", "encoder": "encoder", "self": "decoder" if both else ""}.get(word)
    chosen = [s for s in stacks if kind == "" or (kind is not None and (s.kind == "decoder") == (kind == "decoder"))]
    if len(chosen) != 1 or (word == "cross" and chosen[0].cross_attention is None):
        allowed = ", ".join(stack.kind for stack in stacks)
        raise refused("prefixes of an attention that the model has not", tensors.folder, pool, "", allowed)
    return chosen[0].path, word == "cross"


def _places(config: Mapping[str, Any], tensors: Tensors) -> Places:
    out, number = set(config.get("leave_out") or ()), numbers(tensors.arch)
    found: Places = {}
    for pool in _pools(tensors):
        stack, cross = _where(tensors, config, pool)
        count = next(one.num_layers for one in tensors.arch.stacks if one.path == stack)
        found[(stack, cross)] = [i for i in range(count) if number[(stack, i)] not in out]
    return found


def _is_flat(tensors: Tensors) -> bool:
    return any(f"{start}control_trans" in tensors.tensors for start in _pools(tensors).values())


def prefix_configs(config: Mapping[str, Any], tensors: Tensors) -> tuple[MethodConfig, ...]:
    """Return our configs of AdapterHub's: one, or one for each stack whose layers are not all chosen.

    Raises:
        CheckpointError: the file holds no prefix, or one of another kind than the config says.
    """
    if not _pools(tensors):
        raise refused("the file holds no prefix", tensors.folder, f"none of {tensors.name!r}")
    if config.get("use_gating") and not config.get("shared_gating", True):
        raise refused("gates of keys and of values apart", tensors.folder, "shared_gating=False", "shared_gating=True")
    if any(stack.calls_per_module > 1 for stack in tensors.arch.stacks):
        what = "a prefix of layers that are one module"
        raise refused(what, tensors.folder, tensors.arch.model_type, "train it anew")
    distances = tensors.distances
    if distances and config.get("leave_out"):
        raise refused(
            "prefixes that leave layers out of a model that counts distances: adapters forgets the distances there",
            tensors.folder,
            f"leave_out={config['leave_out']!r} on {tensors.arch.model_type}",
            "train it anew, on all layers",
        )
    places = _places(config, tensors)
    act = activation_of({"non_linearity": "tanh", **config}, tensors.folder, False)
    words = {path: tuple(w for w, cross in (("self", False), ("cross", True)) if (path, cross) in places)
             for path in dict.fromkeys(path for path, _ in places)}  # fmt: skip
    layers = [(path, index) for (path, cross), indices in places.items() for index in indices]
    split = split_layers(tensors.arch, dict.fromkeys(layers))
    # One network makes the prefixes of all layers of a config: only its table can be cut in two. Another non-linearity
    # than tanh no network here has.
    flat = _is_flat(tensors) or len(split) > 1 or act != "tanh"
    made = []
    for stack, indices in split:
        of = [s.path for s in tensors.arch.stacks if stack in ("all", "decoder" if s.kind == "decoder" else "encoder")]
        attention = tuple(dict.fromkeys(word for path in of for word in words.get(path, ()))) or ("self",)
        made.append(
            PrefixConfig(
                config.get("prefix_length", 30),
                "flat" if flat else "mlp",
                config.get("bottleneck_size", 512),
                attention=attention,
                dropout=config.get("dropout", 0.0),
                gate="mean_padded" if config.get("use_gating") else "none",
                layers=indices,
                stack=stack,
                tokens="keys_behind" if distances and "self" in attention else "apart",
            )
        )
    return tuple(made)


def prefix_weights(model: PreTrainedModel, name: str, tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of our parameters of an adapter, by the model's names for them."""
    found: dict[str, Tensor] = {}
    places = _places(config, tensors)
    pools = {_where(tensors, config, pool): start for pool, start in _pools(tensors).items()}
    act = activation_of({"non_linearity": "tanh", **config}, tensors.folder, False)
    tables: dict[tuple[str, bool], Tensor] = {}
    for path, delta in deltas_of(model, name):
        ours: Any = delta.config(name)
        if ours.method != "prefix":
            continue
        site, place = delta.site, (delta.site.stack, delta.site.slot.startswith("cross"))
        full = f"{path}.adapters.{name}"
        if ours.reparametrization == "flat":
            if place not in tables:
                tables[place] = _table(tensors, pools[place], act)
            cut = _cut(tensors, tables[place], ours.num_virtual_tokens, len(places[place]), site)
            number = places[place].index(site.layer)
            found[f"{full}.prefix_key"] = cut[:, 2 * number].transpose(0, 1)
            found[f"{full}.prefix_value"] = cut[:, 2 * number + 1].transpose(0, 1)
        if ours.gate != "none":
            for part in ("weight", "bias"):
                key = f"{tensors.relative(site.leaf)}.prefix_tuning.prefix_gates.{tensors.name}.{part}"
                found[f"{full}.gate_{part}"] = tensors.take(key)
    networks: Any = shared_modules(model, name)
    for key, network in networks["prefix"].networks.items() if "prefix" in networks else ():
        place = next(p for p in pools if key == f"{p[0].replace('.', '_')}_{'cross' if p[1] else 'self'}")
        for ours, _ in network.named_parameters():
            head, _, rest = ours.partition(".")
            theirs = f"{pools[place]}{_PARTS[head]}{f'.{rest}' if rest else ''}"
            found[f"hfadapt_shared.{name}.prefix.networks.{key}.{ours}"] = tensors.take(theirs)
    return found


def _table(tensors: Tensors, start: str, act: str) -> Tensor:
    if f"{start}control_trans" in tensors.tensors:
        return tensors.take(f"{start}control_trans")
    words = tensors.take(f"{start}wte.weight")
    one, two = ([tensors.take(f"{start}control_trans.{i}.{part}") for part in ("weight", "bias")] for i in (0, 2))
    try:
        inner = get_activation(act).fn(torch.nn.functional.linear(words, *one))
        return torch.nn.functional.linear(inner, *two)
    except RuntimeError as error:
        raise refused("the prefix's network does not fit together", tensors.folder, str(error)[:200]) from None


def _cut(tensors: Tensors, table: Tensor, length: int, layers: int, site: Any) -> Tensor:
    """View a table as ``[P, 2 L, G, K]``."""
    if table.numel() != length * 2 * layers * site.kv_heads * site.width:
        got = f"{table.numel()} numbers for {length} tokens in {layers} layers of {site.kv_heads} x {site.width}"
        raise refused("the prefix has another size than its config and this model say", tensors.folder, got)
    return table.reshape(length, 2 * layers, site.kv_heads, site.width)


def prefix_twins(tensors: Tensors) -> dict[str, str]:
    """Return the ends of keys under which every layer repeats the prefixes, and what they repeat."""
    starts = _pools(tensors)
    pooled = f".prefix_tuning.pool.prefix_tunings.{tensors.name}"
    return {
        f"{pooled}.{pool}.{key.removeprefix(start)}": key
        for pool, start in starts.items()
        for key in tensors.tensors
        if key.startswith(start)
    }
