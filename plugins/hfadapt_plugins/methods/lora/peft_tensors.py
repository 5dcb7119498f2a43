"""The tensors of a LoRA that peft saved: which linears of this model they update, and what else the file holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.adapters.formats import CONFIG_FILE, WEIGHTS_FILE, head_modules, paths_in
from hfadapt.architecture import CONVOLUTIONS, is_convolution, is_linear, is_table, linear_sizes
from hfadapt.errors import CheckpointError, HFAdaptError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from .peft_config import PeftLoRA

__all__ = ["MORE", "PARTS", "PREFIX", "TABLE_PARTS", "Updates", "fit_to_model", "refuse_other_padding", "split_tensors"]

PREFIX = "base_model.model."
PARTS = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
#: The same of a table of vectors, which is a parameter and no module there.
TABLE_PARTS = {"lora_a": ".lora_embedding_A", "lora_b": ".lora_embedding_B"}
#: What a LoRA may have beside them: the bias of B, DoRA's lengths, and the linear's own bias, trained.
MORE = {
    "lora_bias": ".lora_B.bias",
    "magnitude": ".lora_magnitude_vector",
    "base_bias": ".base_layer.bias",
}
_BASE_COPY = ".base_layer."

Updates = dict[str, dict[str, "Tensor"]]
Folder = str | os.PathLike[str]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by every name they have; tied ones have several."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def split_tensors(
    tensors: dict[str, Tensor], folder: Folder, wanted: Iterable[str] = (), empty: bool = False
) -> tuple[Updates, dict[str, Tensor]]:
    """Return the matrices of each linear, and the other tensors, by their paths in the model that was adapted.

    Args:
        tensors: Content of the file.
        folder: For errors.
        empty: There may be no matrices at all, beside those of parameters.
        wanted: Which of ``MORE`` the config announces; every linear must have them then.

    Raises:
        CheckpointError: there is no LoRA in the file, half of one, or more than A and B.
    """
    updates: Updates = {}
    others: dict[str, Tensor] = {}
    known = {**PARTS, **{part: end for part, end in MORE.items() if part in wanted}}
    ends = {end: part for part, end in (*known.items(), *TABLE_PARTS.items())}
    tables: set[str] = set()
    for key, tensor in tensors.items():
        path = key.removeprefix(PREFIX).replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        end = next((end for end in ends if path.endswith(end)), None)
        if end is None:
            others[path] = tensor
        else:
            leaf = path.removesuffix(end)
            updates.setdefault(leaf, {})[ends[end]] = tensor
            tables |= {leaf} if end in TABLE_PARTS.values() else set()
    more = [key for key in others if any(one.startswith("lora_") for one in key.split("."))]
    if more:
        raise _refusal(
            "more than the matrices A and B of a plain LoRA", folder, ", ".join(more[:3]), ", ".join(ends), _MERGE
        )
    # a linear without a bias has none to train
    needed = {part for part in known if part != "base_bias"}
    halves = [leaf for leaf, parts in updates.items() if not (PARTS.keys() if leaf in tables else needed) <= set(parts)]
    if (not updates and not empty) or halves:
        got = f"{', '.join(updates[halves[0]])} alone at {halves[0]}" if halves else "no lora_A and lora_B"
        raise CheckpointError(
            f"{WEIGHTS_FILE} holds no whole LoRA",
            where=str(folder),
            got=got,
            allowed=", ".join(sorted(needed)) + " of every linear",
            try_="copy the folder again, or save the adapter again with peft's save_pretrained",
        )
    return updates, others


_MERGE = "merge it with peft (merge_and_unload) and adapt what comes out"


def fit_to_model(
    model: PreTrainedModel, updates: Updates, others: dict[str, Tensor], config: PeftLoRA, folder: Folder
) -> tuple[Updates, dict[str, Tensor], dict[str, str]]:
    """Return the updates and the modules saved whole by their paths in ``model``, and the updates' paths in the file.

    Copies of the base's own weights, which peft writes beside a LoRA of tied or resized embeddings, are compared with
    this base and left out.

    Raises:
        CheckpointError: this model lacks a module, or it is no linear; ranks differ from the config; a tensor is none
            that the config announces; or the file's copy of the base differs from this base.
    """
    saved = list(updates)
    updates, others = _with_paths_of(model, updates, others, folder)
    paths = dict(zip(updates, saved, strict=True))  # patterns are of the paths that peft had
    for leaf, parts in updates.items():
        module = model.get_submodule(leaf)
        if is_convolution(module):
            refuse_other_padding(module, leaf, CheckpointError)
            parts["lora_b"] = _without_window(parts["lora_b"])
        elif not is_linear(module) and not is_table(module):
            what = f"a LoRA of a {type(module).__name__}, which is no linear, no table and no convolution of one group"
            raise _refusal(what, folder, leaf, "linears, tables and convolutions of one group", _MERGE)
        a, b, r = parts["lora_a"], parts["lora_b"], config.rank(paths[leaf])
        axes = module.get_parameter("weight").dim() if is_convolution(module) else 2
        if a.dim() != axes or b.dim() != 2 or a.shape[0] != r or b.shape[1] != r:
            got = f"A {list(a.shape)} and B {list(b.shape)} at {leaf}, r={r}"
            fits = f"A with {r} rows and B with {r} columns"
            cure = f"the {CONFIG_FILE} that was saved beside the weights"
            raise _refusal("the matrices do not have the config's rank", folder, got, fits, cure)
    own, heads = named_tensors(model), head_modules(model)
    whole: dict[str, Tensor] = {}
    for key, tensor in others.items():
        path, _, kind = key.rpartition(".")
        if _BASE_COPY not in key and _is_saved_whole(key, config.modules_to_save):
            if key not in own:
                raise _no_place(model, key, folder)
            whole[key] = tensor
        elif config.all_biases and kind == "bias" and key in own and _BASE_COPY not in key:
            module = model.get_submodule(path)
            if is_linear(module) and path not in heads:  # an update that is its bias alone
                inputs, outputs = linear_sizes(module)
                updates[path] = {
                    "lora_a": torch.zeros(1, inputs),
                    "lora_b": torch.zeros(outputs, 1),
                    "base_bias": tensor,
                }
            else:
                kept = {name: one.detach().cpu().clone() for name, one in module.named_parameters(recurse=False)}
                whole |= {f"{path}.{name}": one for name, one in {**kept, "bias": tensor}.items()}
        else:
            _check_base_copy(model, key.replace(_BASE_COPY, "."), tensor, own, folder)
    for leaf in paths if config.biases else ():
        if "base_bias" not in updates[leaf] and f"{leaf}.bias" in own:
            raise CheckpointError(
                "the file lacks a bias that its config announces",
                where=str(folder),
                got=f"no {leaf}.bias",
                allowed=f"the bias of each linear with a LoRA, {list(own[f'{leaf}.bias'].shape)} of this one",
                try_=f'"bias": "none" in {CONFIG_FILE} where the biases were not trained',
            )
    return updates, whole, paths


def _without_window(b: Tensor) -> Tensor:
    """B of a convolution, which sees one place at a time, as the matrix that it is."""
    return b.flatten(1) if b.dim() > 2 and b.shape[2:].numel() == 1 else b


def refuse_other_padding(module: Any, leaf: str, error: type[HFAdaptError]) -> None:
    """Raise where peft's A reads another window than the base: it pads with zeros, and has no dilation.

    Raises:
        HFAdaptError: of the kind ``error``.
    """
    if type(module).__init__ not in [kind.__init__ for kind in CONVOLUTIONS]:
        raise error(
            "peft makes A of this convolution's class by torch's arguments, and the class takes others",
            where=leaf,
            got=type(module).__name__,
            allowed="classes that take what torch's convolutions take",
            try_="hfadapt.save and hfadapt.load, whose files hold the update as it is",
        )
    wide = [size for size in module.dilation if size != 1]
    if wide or module.padding_mode != "zeros":
        raise error(
            "peft's LoRA of this convolution reads another window than the convolution does",
            where=leaf,
            got=f"dilation={module.dilation}, padding_mode={module.padding_mode!r}",
            allowed="dilation=1, padding_mode='zeros'",
            try_="hfadapt.save and hfadapt.load, whose files hold the update as it is",
        )


def _with_paths_of(
    model: PreTrainedModel, updates: Updates, others: dict[str, Tensor], folder: Folder
) -> tuple[Updates, dict[str, Tensor]]:
    """Rename what was saved from a model with a head, or without one, to this model's paths."""
    linears = [path for path, module in model.named_modules() if is_linear(module) or is_convolution(module)]
    paths = paths_in(model, updates, folder, f"linears such as {', '.join(linears[:3])}")
    if not updates:
        return updates, others
    renamed, prefix = {paths[leaf]: parts for leaf, parts in updates.items()}, f"{model.base_model_prefix}."
    first = next(iter(updates))
    if paths[first] == first:
        return updates, others
    if paths[first] == f"{prefix}{first}":
        return renamed, {f"{prefix}{key}": tensor for key, tensor in others.items()}
    head = [key for key in others if not key.startswith(prefix)]
    if head:
        raise _no_place(model, head[0], folder)
    return renamed, {key.removeprefix(prefix): tensor for key, tensor in others.items()}


def _is_saved_whole(key: str, modules_to_save: Iterable[str]) -> bool:
    """Whether a module above the tensor ends with one of the names, as peft looks for them."""
    steps = key.split(".")
    paths = [".".join(steps[:i]) for i in range(1, len(steps))]
    return any(path.endswith(name) for name in modules_to_save for path in paths)


def _check_base_copy(model: PreTrainedModel, key: str, saved: Tensor, own: dict[str, Tensor], folder: Folder) -> None:
    """Compare a tensor of the base in the file with this base's."""
    if key not in own:
        raise _no_place(model, key, folder)
    here = own[key].detach().cpu()
    if here.shape != saved.shape:
        raise _refusal(
            "the file holds the base's embeddings or other weights in another size: its vocabulary was resized",
            folder,
            f"{key} {list(saved.shape)} in the file",
            f"{list(here.shape)}, as in this {type(model).__name__}",
            "model.resize_token_embeddings to the file's size, and copy its rows into the base",
        )
    if not (torch.equal(here.to(saved.dtype), saved) or torch.equal(here, saved.to(here.dtype))):
        raise _refusal(
            "the file holds weights of the base, and this base's differ",
            folder,
            f"{key}, not among modules_to_save",
            "the numbers that this base has there",
            "copy them into the base before, or merge with peft (merge_and_unload)",
        )


def _no_place(model: PreTrainedModel, key: str, folder: Folder) -> CheckpointError:
    return _refusal(
        f"the file holds a module that {type(model).__name__} has not, such as the head it was trained with",
        folder,
        key,
        f"modules of {type(model).__name__}",
        "load it on a model of the class that was adapted",
    )


def _refusal(what: str, folder: Folder, got: str, allowed: str, try_: str) -> CheckpointError:
    return CheckpointError(what, where=str(folder), got=got, allowed=allowed, try_=try_)
