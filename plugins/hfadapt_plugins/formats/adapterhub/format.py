"""AdapterHub's folders: what is in them, and how each part is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import Fuse, Parallel, Stack
from hfadapt.adapters.formats import CONFIG_FILE, Described, FolderContent, FolderFormat, ReadOptions, arch_of

from ..files import config_in, is_file, tensors_in
from .bottleneck import bottleneck_configs, bottleneck_weights
from .fields import check, kind_of
from .folder import Tensors, refused
from .fusion import describe_fusion
from .heads import CLASSES, head_tensors
from .lora import lora_configs, lora_weights
from .mtl_lora import mtl_lora_configs, mtl_lora_weights
from .prefix import prefix_configs, prefix_twins, prefix_weights
from .write import write_adapter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hfadapt import ArchitectureMap, MethodConfig

__all__ = ["AdapterHubFormat"]

_WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_HEAD, _HEAD_WEIGHTS = "head_config.json", ("model_head.safetensors", "pytorch_model_head.bin")
_FUSION = "adapter_fusion_config.json"
_FUSION_WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
_SETUP = "adapter_setup.json"
_FIRST_WITH_ALPHA = (1, 1, 0)
#: Families on which the library's own adapters were compared with its outputs, and those that share their code.
_CHECKED = (
    *("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "gpt2", "llama", "mistral", "qwen2"),
    *("bart", "mbart", "t5", "mt5"),
)


class AdapterHubFormat(FolderFormat):
    """``adapter_config.json`` with a ``config`` of AdapterHub's, a fusion, a head, or a setup of several of them."""

    name = "adapterhub"
    summary = "AdapterHub's adapters, and adapter-transformers before it"

    def recognises(self, folder: Path) -> bool:
        """One of its files is there; an ``adapter_config.json`` has a field ``config``, and is not peft's or ours."""
        if any(is_file(folder / file) for file in (_SETUP, _FUSION)):
            return True
        if not is_file(folder / CONFIG_FILE):
            return is_file(folder / _HEAD)
        text = (folder / CONFIG_FILE).read_text("utf-8", errors="replace")
        return '"config"' in text and '"peft_type"' not in text and '"format": "hfadapt"' not in text

    def base(self, folder: Path, options: ReadOptions) -> tuple[str, str, Mapping[str, Any]]:
        """The class that the library adapted, or that has a head as the folder's, and its name."""
        part = _first_part(folder)
        data = config_in(part, CONFIG_FILE if is_file(part / CONFIG_FILE) else _HEAD)
        kind, more = str(data.get("model_class")), {}
        if is_file(part / _HEAD):
            head = config_in(part, _HEAD)
            config = head.get("config")
            labels = (config if isinstance(config, dict) else head).get("label2id")
            kind = CLASSES.get(str(config.get("head_type")), kind) if isinstance(config, dict) else kind
            if isinstance(labels, dict) and all(type(number) is int for number in labels.values()):
                more = {"label2id": labels, "id2label": {number: label for label, number in labels.items()}}
        kind = kind.replace("ModelWithHeads", "Model").replace("AdapterModel", "Model")
        return kind, str(data.get("model_name") or ""), more

    def read(self, model: PreTrainedModel, folder: Path, options: ReadOptions) -> FolderContent:
        """Read an adapter with its head, a fusion, a head alone, or several adapters and their composition."""
        arch = arch_of(model)
        if arch.model_type not in _CHECKED:
            raise refused(
                "a family on which no adapter of AdapterHub's has been compared with its outputs",
                folder,
                arch.model_type,
                "convert it by hand: hfadapt.attach, and copy the weights",
                ", ".join(_CHECKED),
            )
        if is_file(folder / _SETUP):
            return _read_setup(model, arch, folder, options)
        if is_file(folder / _FUSION):
            data = config_in(folder, _FUSION)
            found = describe_fusion(data, tensors_in(folder, *_FUSION_WEIGHTS, options), model, arch, folder)
            return FolderContent(fusions=(found,), choice=found.node)
        if is_file(folder / CONFIG_FILE):
            return FolderContent((_read_adapter(model, arch, folder, options),))
        if not is_file(folder / _HEAD):
            there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
            raise refused("none of AdapterHub's files", folder, there)
        data = config_in(folder, _HEAD)
        whole = head_tensors(data, tensors_in(folder, *_HEAD_WEIGHTS, options), model, folder)
        return FolderContent((Described(options.name or data.get("name") or "head", (), lambda twin, name: {}, whole),))

    def write(self, model: PreTrainedModel, folder: Path, name: str | None) -> None:
        """Write an adapter and its head, as ``save_adapter(..., use_safetensors=True)`` does."""
        write_adapter(model, folder, name)


def _first_part(folder: Path) -> Path:
    """Return the folder itself, or the first of the adapters of a setup."""
    if is_file(folder / CONFIG_FILE) or is_file(folder / _HEAD) or not folder.is_dir():
        return folder
    return next((one for one in sorted(folder.iterdir()) if is_file(one / CONFIG_FILE)), folder)


def _read_adapter(model: PreTrainedModel, arch: ArchitectureMap, folder: Path, options: ReadOptions) -> Described:
    data = config_in(folder, CONFIG_FILE)
    config, theirs = data.get("config"), data.get("name")
    if not isinstance(config, dict) or not isinstance(theirs, str) or not theirs:
        raise refused(f"{CONFIG_FILE} is damaged", folder, f"name {theirs!r}, config {config!r}"[:200])
    version = data.get("version")
    tensors = Tensors.read(tensors_in(folder, *_WEIGHTS, options), model, arch, theirs, folder)
    parts = _parts(config, folder)
    configs: list[MethodConfig] = []
    for kind, fields in parts:
        check(kind, fields, folder)
        if kind == "bottleneck":
            configs += bottleneck_configs(fields, tensors, version is None)
        elif kind == "prefix_tuning":
            configs += prefix_configs(fields, tensors)
        elif kind == "mtl_lora":
            configs += mtl_lora_configs(fields, tensors, model)
        else:
            configs += lora_configs(fields, tensors, model, len(parts) == 1 and _without_alpha(version))
    whole: dict[str, Tensor] = {}
    if is_file(folder / _HEAD):
        file = tensors_in(folder, *_HEAD_WEIGHTS, options)
        whole = head_tensors(config_in(folder, _HEAD), file, model, folder)
    weights = partial(_weights, tensors=tensors, parts=parts)
    return Described(options.name or theirs, tuple(configs), weights, whole)


def _parts(config: Mapping[str, Any], folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the kinds and fields that make one adapter.

    Raises:
        CheckpointError: one is no kind that is read, or there are two of one kind.
    """
    kind = kind_of(config, folder)
    if kind != "union":
        return [(kind, config)]
    inside = config.get("configs")
    if not isinstance(inside, list) or not inside or not all(isinstance(one, dict) for one in inside):
        raise refused("a union of no configs", folder, f"configs {inside!r}"[:200])
    found = [(kind_of(one, folder), one) for one in inside]
    kinds = [kind for kind, _ in found]
    same = [kind.removeprefix("mtl_") for kind in kinds]  # both kinds of LoRA have their tensors at the same names
    if "union" in kinds or len(set(same)) != len(same):
        raise refused("a union of two of one kind", folder, ", ".join(kinds))
    return found


def _weights(
    model: PreTrainedModel, name: str, tensors: Tensors, parts: list[tuple[str, Mapping[str, Any]]]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for kind, fields in parts:
        if kind == "bottleneck":
            found |= bottleneck_weights(model, name, tensors)
        elif kind == "prefix_tuning":
            found |= prefix_weights(model, name, tensors, fields)
        elif kind == "mtl_lora":
            found |= mtl_lora_weights(model, name, tensors)
        else:
            found |= lora_weights(model, name, tensors, fields)
    tensors.refuse_rest(prefix_twins(tensors))
    return found


def _without_alpha(version: Any) -> bool:
    """Say whether a release wrote the folder that left alpha out of LoRA's computation (0.1.0 to 1.0.1)."""
    numbers = str(version or "").removeprefix("adapters.").split(".")
    if not str(version or "").startswith("adapters.") or not all(one.isdigit() for one in numbers[:2]):
        return False
    return tuple(int(one) for one in numbers[:2]) < _FIRST_WITH_ALPHA[:2]


def _read_setup(model: PreTrainedModel, arch: ArchitectureMap, folder: Path, options: ReadOptions) -> FolderContent:
    if options.name is not None:
        raise refused("one name for several adapters", folder, f"name={options.name!r}", "load one of its folders")
    data = config_in(folder, _SETUP)
    node, names = _node(data.get("adapter_setup"), folder, 0)
    adapters, fusions = [], []
    for one in names:
        if one in ("", ".", "..") or "/" in one or "\\" in one:
            raise refused("the setup names no folder inside itself", folder, repr(one)[:100])
        adapters.append(_read_adapter(model, arch, folder / one, replace(options, name=one)))
    for fusion in _fusions(node):
        place = folder / ",".join(str(child) for child in fusion.children)
        found = config_in(place, _FUSION)
        fusions.append(describe_fusion(found, tensors_in(place, *_FUSION_WEIGHTS, options), model, arch, place))
    return FolderContent(tuple(adapters), tuple(fusions), node)


def _fusions(node: Any) -> list[Fuse]:
    if isinstance(node, Fuse):
        return [node]
    return [fuse for child in getattr(node, "children", ()) for fuse in _fusions(child)]


def _node(data: Any, folder: Path, depth: int) -> tuple[Any, list[str]]:
    """Return the composition of a setup, and the adapters in it in their order.

    Raises:
        CheckpointError: it is none that hfadapt has.
    """
    if not isinstance(data, dict) or not isinstance(data.get("children"), list) or not data["children"] or depth > 8:
        raise refused(f"{_SETUP} is damaged", folder, f"{data!r}"[:200])
    kind, more = data.get("type"), data.get("kwargs") or {}
    if kind == "single":
        name = data["children"][0]
        if not isinstance(name, str) or len(data["children"]) != 1:
            raise refused(f"{_SETUP} is damaged", folder, f"{data!r}"[:200])
        return name, [name]
    pairs = [_node(child, folder, depth + 1) for child in data["children"]]
    children = [child for child, _ in pairs]
    names = list(dict.fromkeys(name for _, inside in pairs for name in inside))
    plain = all(isinstance(child, str) for child in children)
    if kind == "Stack":
        return (children[0] if len(children) == 1 else Stack(*children)), names
    if kind in ("Fuse", "Parallel"):
        return (Fuse if kind == "Fuse" else Parallel)(*children), names
    if kind == "BatchSplit" and plain and depth == 0:
        return _rows(children, more, folder), names
    if kind == "MultiTask" and plain and depth == 0:
        return None, names  # task_ids of a call count the adapters in their order, there and here
    cures = {
        "Average": "each adapter's folder, then hfadapt.Average: adapters divides a sum by their number once more",
        "Split": "no method here gives parts of a row adapters of their own",
    }
    raise refused(
        "a composition that hfadapt has not", folder, f"type {kind!r}", cures.get(str(kind), ""),
        "Stack, Fuse, Parallel, and outermost BatchSplit and MultiTask of adapters",
    )  # fmt: skip


def _rows(children: list[str], more: Any, folder: Path) -> tuple[str, ...]:
    """Return the adapter of each row of a BatchSplit."""
    given = more.get("batch_sizes") if isinstance(more, dict) else None
    sizes = [given] * len(children) if type(given) is int else given
    fits = isinstance(sizes, list) and all(type(n) is int and 0 <= n < 1 << 20 for n in sizes)
    if isinstance(sizes, list) and fits and len(sizes) == len(children):
        return tuple(name for name, count in zip(children, sizes, strict=True) for _ in range(count))
    raise refused(f"{_SETUP} is damaged", folder, f"batch_sizes {given!r}"[:200])
