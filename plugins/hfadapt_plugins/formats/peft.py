"""peft's folders: which kind of adapter is in them, and which method here reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import Handle, attachment, plugins
from hfadapt.adapters.formats import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Described,
    FolderContent,
    FolderFormat,
    ReadOptions,
    as_described,
    paths_in,
    put_on,
    require_folder,
)
from hfadapt.errors import CheckpointError, did_you_mean

from .files import config_in, is_file, tensors_in

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["PeftFormat"]

_PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_NORM = ".ln_tuning_layers"

_AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}

# What to do with kinds that no method here computes.
_MERGE = "merge it with peft (merge_and_unload), and adapt what comes out"
_CONVERT = "make a LoRA of it with peft (save_as_lora), or merge it (merge_and_unload)"
_CURES = {
    "IA3": "pip install hfadapt-plugin-ia3 (examples/hfadapt-plugin-ia3), or merge it with peft (merge_and_unload)",
    "PROMPT_TUNING": "prefix tuning (hfadapt.PrefixConfig), trained anew: no method here adds tokens to the input",
    "P_TUNING": "prefix tuning (hfadapt.PrefixConfig), trained anew: no method here adds tokens to the input",
    "MULTITASK_PROMPT_TUNING": "prefix tuning of each task (hfadapt.PrefixConfig), trained anew",
    "ADAPTION_PROMPT": "prefix tuning (hfadapt.PrefixConfig), trained anew",
    **dict.fromkeys(("ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "RANDLORA", "FOURIERFT"), _CONVERT),
}


class PeftFormat(FolderFormat):
    """``adapter_config.json`` with a ``peft_type``, and ``adapter_model.safetensors``.

    A method says under ``foreign["peft"]`` which kinds it reads. Such a function takes the model, the config's fields,
    the tensors, the folder and the adapter's name, and returns a ``Described``.
    """

    name = "peft"
    summary = "Hugging Face's peft"

    def recognises(self, folder: Path) -> bool:
        """Its config says a ``peft_type``, or that of a folder inside it does."""
        return _is_peft(folder) or bool(_inside(folder))

    def base(self, folder: Path, options: ReadOptions) -> tuple[str, str, Mapping[str, Any]]:
        """The class that the config names, or transformers' automatic class for its task."""
        data = config_in(folder if _is_peft(folder) else _inside(folder)[0], CONFIG_FILE)
        mapping = data.get("auto_mapping")
        kind = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        kind = kind or _AUTO.get(str(data.get("task_type")), "AutoModel")
        return str(kind), str(data.get("base_model_name_or_path") or ""), {}

    def read(self, model: PreTrainedModel, folder: Path, options: ReadOptions) -> FolderContent:
        """Read the adapter of a folder, or those of the folders inside it, which have their names."""
        if _is_peft(folder):
            return FolderContent((read_adapter(model, folder, replace(options, name=options.name or "default")),))
        found = _inside(folder)
        if not found:
            there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
            raise CheckpointError(
                f"no {CONFIG_FILE} of peft's",
                where=str(folder),
                got=there,
                allowed=f"{CONFIG_FILE} with a peft_type, here or in the folders of this one",
                try_="the folder that peft's save_pretrained wrote",
            )
        if options.name is not None and len(found) > 1:
            raise CheckpointError(
                "one name for several adapters",
                where=str(folder),
                got=f"name={options.name!r}",
                allowed=f"no name, for all of {', '.join(one.name for one in found[:5])}",
                try_=f"hfadapt.load({str(found[0])!r}, model, name=...)",
            )
        if all(re.fullmatch(r"checkpoint-\d+", one.name) for one in found):
            names = ", ".join(one.name for one in found[:5])
            latest = max(found, key=lambda one: int(one.name.rpartition("-")[2]))
            raise CheckpointError(
                "the folder holds checkpoints of a run; which one?",
                where=str(folder),
                got=names,
                allowed="the folder of one checkpoint",
                try_=f"hfadapt.load({str(latest)!r}, model), the latest",
            )
        each = [read_adapter(model, one, replace(options, name=options.name or one.name)) for one in found]
        return FolderContent(tuple(each))

    def write(self, model: PreTrainedModel, folder: Path, name: str | None) -> None:
        """Write a LoRA, as ``save_peft`` does, or a prefix."""
        from ..methods.lora.peft_files import save_peft
        from ..methods.prefix import PrefixConfig
        from ..methods.prefix.peft_files import write_prefix

        state = attachment(model)
        one = name if name is not None or len(state.names) != 1 else state.names[0]
        if one is not None and any(isinstance(config, PrefixConfig) for config in state.require(one).configs):
            write_prefix(model, folder, one)
        else:
            save_peft(model, folder, name)


def _is_peft(folder: Path) -> bool:
    if not is_file(folder / CONFIG_FILE):
        return False
    text = (folder / CONFIG_FILE).read_text("utf-8", errors="replace")
    if '"peft_type"' not in text:
        return False
    try:
        data = config_in(folder, CONFIG_FILE)
    except CheckpointError:
        return True  # damaged: whoever reads it says so
    return "peft_type" in data and data.get("format") != "hfadapt"


def _inside(folder: Path) -> list[Path]:
    """Return the folders of adapters in one that is no adapter's itself."""
    if not folder.is_dir() or (folder / CONFIG_FILE).exists():
        return []
    return sorted(one for one in folder.iterdir() if one.is_dir() and _is_peft(one))


def read_adapter(model: PreTrainedModel, folder: Path, options: ReadOptions) -> Described:
    """Read one adapter, with the method that says it can.

    Raises:
        CheckpointError: no method here computes its kind; or see ``FolderFormat.read``.
    """
    data = config_in(folder, CONFIG_FILE)
    kind = data.get("peft_type")
    readers = {"LN_TUNING": _read_norms}
    readers |= {k: read for method in plugins.methods().values() for k, read in _readers(method).items()}
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(
            "no kind of peft's adapters that hfadapt reads",
            where=str(folder),
            got=f"peft_type {kind!r}",
            allowed=", ".join(sorted(readers)),
            try_=_CURES.get(str(kind)) or did_you_mean(str(kind), readers) or _MERGE,
        )
    tensors = tensors_in(folder, WEIGHTS_FILE, _PICKLED, options)
    return readers[kind](model, data, tensors, folder, options.name or "default")


_NORM_FIELDS = ("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "peft_type", "revision")
_NORM_FIELDS += ("peft_version", "target_modules", "task_type", "modules_to_save")


def _read_norms(
    model: PreTrainedModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, name: str
) -> Described:
    """LN tuning: an adapter that is its own copies of norms, and of what ``modules_to_save`` names."""
    strange = [f"{key}={value!r}" for key, value in config.items() if key not in _NORM_FIELDS and value]
    saved = {key.removeprefix(_PREFIX).replace(_NORM, ""): tensor for key, tensor in tensors.items()}
    if strange or not any(_NORM in key for key in tensors):
        got = ", ".join(strange)[:300] or "no tensor of a norm"
        raise CheckpointError(
            "more or less than hfadapt knows of LN tuning",
            where=str(folder),
            got=got,
            allowed=f"tensors of norms, and fields among {', '.join(_NORM_FIELDS)}",
            try_=_MERGE,
        )
    paths = paths_in(model, dict.fromkeys(key.rpartition(".")[0] for key in saved), folder)
    whole = {f"{paths[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in saved.items()}
    return Described(name, (), lambda twin, called: {}, whole)


def _readers(method: Any) -> Mapping[str, Any]:
    return getattr(method, "foreign", {}).get("peft", {})


def load_peft(model: PreTrainedModel, folder: str | os.PathLike[str], name: str = "default") -> Handle:
    """Attach an adapter that peft saved, with the head and the other modules that it saved.

    These are the adapter's own: the base's modules stay as they are, for other adapters and for calls without one.
    ``hfadapt.load(folder, model)`` does the same, and returns the model.

    Args:
        model: The base that was adapted; a head that the files lack stays as it is.
        folder: With peft's ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What to call the adapter here.

    Raises:
        CheckpointError: the files are damaged, say what hfadapt cannot do (each such field is named), or do not fit
            this model; or the name is taken.
    """
    path = require_folder(folder, where="hfadapt.load_peft")
    with as_described(folder):
        content = FolderContent((read_adapter(model, path, ReadOptions(name)),))
    put_on(model, content, folder)
    return Handle(model, (name,))


PeftFormat.exports = {"load_peft": load_peft}
