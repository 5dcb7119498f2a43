"""LoRAs of parameters in peft's files: ``target_parameters``, such as experts' matrices in one tensor.

peft wraps a module once for each of its parameters, the first of them innermost: in a file the last one's matrices
stand at the module, those of the one before it below ``base_layer``, and so on. A is ``[E R, Din]``, expert after
expert; B is ``[O, R E]``, in whose columns the experts take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfadapt.adapters.formats import paths_in
from hfadapt.errors import CheckpointError

from .names import parameter_site
from .peft_tensors import PARTS, PREFIX, Folder, Updates

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from hfadapt import Site

    from .delta import LoRADelta
    from .peft_config import PeftLoRA

__all__ = ["path_of", "take_parameters", "tensors_of_parameters"]

_INSIDE = ".base_layer"


def path_of(site: Site) -> str:
    """Return the path of what a LoRA at ``site`` updates: a module's, or a parameter's."""
    return f"{site.leaf}.{site.parameter}" if site.parameter else site.leaf


def take_parameters(
    model: PreTrainedModel, tensors: dict[str, Tensor], config: PeftLoRA, folder: Folder
) -> tuple[Updates, dict[str, str], dict[str, Tensor]]:
    """Return the updates of parameters by their paths in ``model``, their paths in the file, and the other tensors.

    Raises:
        CheckpointError: the config announces parameters that this model or the file lacks, or says what no update of a
            parameter has; or matrices have other sizes than they.
    """
    if not config.target_parameters:
        return {}, {}, tensors
    if config.lora_dropout or config.use_dora or config.lora_bias or config.biases:
        raise CheckpointError(
            "peft writes no such LoRA of parameters",
            where=str(folder),
            got="target_parameters with lora_dropout, use_dora, lora_bias or bias",
            allowed="target_parameters with lora_dropout=0 and none of the other three",
            try_="save the adapter again with peft's save_pretrained",
        )
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in PARTS.values() if key.endswith(end)), None)
        if end is not None:
            found.setdefault(key.removeprefix(PREFIX).removesuffix(end), {})[end] = tensor
    owners = list(dict.fromkeys(path.split(_INSIDE)[0] for path in found))
    updates: Updates = {}
    saved: dict[str, str] = {}
    taken: set[str] = set()
    for theirs, path in paths_in(model, owners, folder).items() if owners else ():
        names = _announced(model.get_submodule(path), theirs, config.target_parameters)
        for depth, name in enumerate(reversed(names)):
            inner = theirs + _INSIDE * depth
            parts = found.get(inner, {})
            if len(parts) != len(PARTS):
                raise CheckpointError(
                    "the file lacks a parameter that its config announces",
                    where=str(folder),
                    got=f"no whole update of {path}.{name}",
                    allowed=f"lora_A and lora_B at {inner}",
                    try_="copy the whole folder again, the file of weights too",
                )
            site = parameter_site(model, path, name, model.get_submodule(path).get_parameter(name))
            r = config.rank(f"{theirs}.{name}")
            a, b = (parts[end] for end in PARTS.values())
            if config.old_stacks and site.read_width == site.changed_width and site.stacked > 1:
                raise CheckpointError(
                    "stacked matrices as wide as high, by a peft that laid their factors the other way round",
                    where=str(folder),
                    got=f"peft before 0.19.1, {path}.{name}",
                    allowed="a folder that peft 0.19.1 or later wrote",
                    try_="merge it with the peft that wrote it (merge_and_unload) and adapt what comes out",
                )
            updates[f"{path}.{name}"] = _of_each(site, a, b, r, folder)
            saved[f"{path}.{name}"] = f"{theirs}.{name}"
            taken |= {f"{PREFIX}{inner}{end}" for end in PARTS.values()}
    silent = [t for t in config.target_parameters if not any(_means(t, path) for path in saved.values())]
    if silent:
        raise CheckpointError(
            "the config announces parameters that this model or the file has not",
            where=str(folder),
            got=f"target_parameters={silent}",
            allowed=", ".join(saved.values()) or "none, for the file holds no update of a parameter",
            try_="load it on the base that was adapted",
        )
    return updates, saved, {key: tensor for key, tensor in tensors.items() if key not in taken}


def _means(target: str, path: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _announced(module: nn.Module, path: str, targets: Sequence[str]) -> list[str]:
    """The parameters of a module that a config names, in the module's order."""
    own = (name for name, _ in module.named_parameters(recurse=False))
    return [name for name in own if any(_means(target, f"{path}.{name}") for target in targets)]


def _of_each(site: Site, a: Tensor, b: Tensor, r: int, folder: Folder) -> dict[str, Tensor]:
    """Our matrices of each of the stacked ones, of peft's."""
    count, inputs, outputs = site.stacked, site.read_width, site.changed_width
    if tuple(a.shape) != (count * r, inputs) or tuple(b.shape) != (outputs, r * count):
        raise CheckpointError(
            "the matrices of a parameter have other sizes than it and the config's rank",
            where=str(folder),
            got=f"A {list(a.shape)} and B {list(b.shape)} at {path_of(site)}, r={r}",
            allowed=f"A {[count * r, inputs]} and B {[outputs, r * count]}",
            try_="load it on the base that was adapted, with the config that was saved beside it",
        )
    return {"lora_a": a.reshape(count, r, inputs), "lora_b": b.reshape(outputs, r, count).permute(2, 0, 1).contiguous()}


def tensors_of_parameters(model: PreTrainedModel, deltas: Sequence[LoRADelta], name: str) -> dict[str, Tensor]:
    """Return what peft's file says of an adapter's updates of parameters."""
    found: dict[str, Tensor] = {}
    by_leaf: dict[str, dict[str, LoRADelta]] = {}
    for delta in deltas:
        by_leaf.setdefault(delta.site.leaf, {})[delta.site.parameter] = delta
    for leaf, mine in by_leaf.items():
        order = [own for own, _ in model.get_submodule(leaf).named_parameters(recurse=False) if own in mine]
        for depth, own in enumerate(reversed(order)):
            weights = mine[own].own(name)
            key = f"{PREFIX}{leaf}{_INSIDE * depth}"
            found[f"{key}{PARTS['lora_a']}"] = weights.lora_a.flatten(0, 1)
            found[f"{key}{PARTS['lora_b']}"] = weights.lora_b.permute(1, 2, 0).flatten(1)
    return found
