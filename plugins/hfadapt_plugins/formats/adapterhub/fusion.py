"""AdapterHub's AdapterFusion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import Fuse, attachment
from hfadapt.adapters.formats import DescribedFusion, fusion_tensors

from .bottleneck import owners_of
from .folder import Tensors, refused

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap

__all__ = ["describe_fusion"]

_FLAGS = ("query", "key", "value", "query_before_ln", "regularization", "residual_before")
# V is applied before the weighted sum or behind it, which is one; how V was drawn.
_HARMLESS = ("value_before_softmax", "value_initialized", "regularization")


def describe_fusion(
    data: Mapping[str, Any], file: dict[str, Tensor], model: PreTrainedModel, arch: ArchitectureMap, folder: Path
) -> DescribedFusion:
    """Return what a folder says of fusion layers.

    Args:
        data: Content of ``adapter_fusion_config.json``.
        file: The tensors.
        model: That has the adapters, or is to get them.
        arch: Its map.
        folder: For errors.

    Raises:
        CheckpointError: a field says what hfadapt cannot do, or holds what it never holds.
    """
    config, name = data.get("config"), data.get("name")
    names = data.get("adapter_names", name)
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(config, dict) or not isinstance(name, str) or not _are_names(names):
        raise refused("adapter_fusion_config.json is damaged", folder, f"name {name!r}, adapter_names {names!r}"[:200])
    known = (*_FLAGS, *_HARMLESS, "temperature", "dropout_prob")
    wrong = [f"{k}={config[k]!r}" for k in _FLAGS if not isinstance(config.get(k, True), bool)]
    wrong += [f"{k}={value!r} (not known here)" for k, value in config.items() if k not in known and value]
    dropout = config.get("dropout_prob")
    if dropout is None:  # there it is the base's own then
        dropout = getattr(model.config, "attention_probs_dropout_prob", 0.0)
    if wrong or isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise refused("more than hfadapt's fusion can say", folder, ", ".join(wrong) or f"dropout_prob={dropout!r}")
    if config.get("temperature"):
        raise refused("a fusion whose temperature is not in the file", folder, "temperature=True", "train it anew")
    if not any(config.get(key, True) for key in ("query", "key", "value")):
        raise refused(
            "a fusion without query, key and value", folder, "all are false", "hfadapt.Average of the adapters"
        )
    fields = {key: config[key] for key in _FLAGS if key in config} | {"dropout": dropout}
    tensors = Tensors.read(file, model, arch, name, folder)
    node = Fuse(*names)
    return DescribedFusion(node, "fusion", fields, partial(_weights, node=node, tensors=tensors))


def _are_names(names: Any) -> bool:
    return (
        isinstance(names, list)
        and len(names) > 1
        and all(isinstance(n, str) for n in names)
        and len(set(names)) == len(names)
    )


def _weights(model: PreTrainedModel, key: str, node: Fuse, tensors: Tensors) -> dict[str, Tensor]:
    owners = owners_of(tensors, "adapter_fusion_layer")
    stacks = {layer.path: layer for layer in attachment(model).arch.layers()}
    found: dict[str, Tensor] = {}
    for full in fusion_tensors(model, node):
        leaf, _, rest = full.partition(".hfadapt.")
        layer = next(one for path, one in stacks.items() if leaf.startswith(f"{path}."))
        place = (
            "attention"
            if leaf in (layer.norms.get("post_attention"), layer.attn_out_dropout, layer.attention.output)
            else "ffn"
        )
        cross = layer.cross_attention
        if cross is not None and leaf in (layer.norms.get("post_cross"), layer.cross_out_dropout, cross.output):
            place = "cross"
        owner = owners.get((layer.stack.path, layer.index, place))
        if owner is None:
            raise refused("the file has no fusion where the adapters are", tensors.folder, leaf)
        which, _, kind = rest.rpartition(".")[2].partition("_")
        found[full] = tensors.take(f"{owner}.adapter_fusion_layer.{tensors.name}.{which}.{kind}")
    tensors.refuse_rest()
    return found
