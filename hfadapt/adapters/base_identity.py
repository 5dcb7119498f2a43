"""Which base an adapter belongs to: what of a config decides shapes and computation, and what may differ.

A folder holds those fields and their hash, so that a refusal can list what differs. Labels and the vocabulary belong to
a task and not to the base; they are kept beside the fields, so that a base that is loaded by its name gets them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from ..runtime.shards import own_class, whole
from .freeze import is_adapter
from .model_source import name_to_save
from .saved_tensors import require_finite

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "TOKENS",
    "base_fields",
    "base_hash",
    "check_base",
    "describe_base",
    "dtype_option",
    "label_options",
    "restore_tokens",
    "token_rows",
]

TOKENS = "vocabulary."

# Names, storage and what a call returns; labels; randomness of training and of fresh weights; token ids, which Trainer
# takes over from the tokenizer; how `generate` decodes; the vocabulary, whose shapes the tensors themselves have.
_NOT_THE_BASE = re.compile(
    r"_.*|architectures|auto_map|transformers_version|(torch_)?dtype|torchscript|tokenizer_class|finetuning_task"
    r"|task_specific_params|prefix|return_dict(_in_generate)?|use_cache|use_bfloat16|chunk_size_feed_forward"
    r"|output_(attentions|hidden_states|router_logits|logits|scores|past)|gradient_checkpointing|pretraining_tp|id2label|label2id|num_labels|problem_type|\w*drop\w*|initializer_\w+"
    r"|init_std|\w*token_ids?|\w*suppress_tokens|bad_words_ids|sep_token|mask_(time|feature)_\w+|apply_spec_augment"
    r"|(router_)?aux_loss_coef|router_jitter_noise|(max|min)_length|do_sample|early_stopping|num_beams|num_beam_groups"
    r"|num_return_sequences|diversity_penalty|temperature|top_[kp]|typical_p|repetition_penalty|length_penalty"
    r"|(encoder_)?no_repeat_ngram_size|exponential_decay_length_penalty|remove_invalid_values|tf_legacy_loss"
    r"|vocab_size|decoder_vocab_size"
)
# They change numbers a little or not at all, and only the user can know which: allowed with strict=False.
_MAY_DIFFER = ("quantization_config", "tie_word_embeddings", "max_position_embeddings", "n_positions")

_OLD_VOLATILE = {"torch_dtype", "dtype", "architectures", "id2label", "label2id", "num_labels", "problem_type"}
_OLD_VOLATILE |= {"transformers_version", "classifier_dropout", "use_cache"}


def base_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a config that decide shapes and computation, as JSON holds them."""
    return json.loads(json.dumps(_without_others(_as_dict(config)), sort_keys=True, default=str))


def _as_dict(config: Any) -> Mapping[str, Any]:
    """The fields of a config, also of a model of the user's own: a dataclass, a map or an object with attributes."""
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return dict(config) if isinstance(config, Mapping) else dict(vars(config))


def _vocabulary(config: Any) -> int | None:
    """How many words the base knows."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None)


def _without_others(data: Mapping[str, Any]) -> dict[str, Any]:
    # Configs of several parts hold further configs, each with fields of this kind.
    return {
        str(key): _without_others(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if not _NOT_THE_BASE.fullmatch(str(key))
    }


def base_hash(fields: Mapping[str, Any]) -> str:
    """Return a hash of the fields of a base."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _old_hash(config: PretrainedConfig) -> str:
    """The hash that folders without ``base_config`` hold."""
    data = {k: v for k, v in config.to_dict().items() if k not in _OLD_VOLATILE and not k.startswith("_")}
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def describe_base(model: PreTrainedModel, model_type: str) -> dict[str, Any]:
    """Return what ``hfadapt_config.json`` says of the base."""
    fields = base_fields(model.config)
    return {
        "base_model_name_or_path": name_to_save(model),
        "base_model_type": model_type,
        "base_config_hash": base_hash(fields),
        "base_config": fields,
        "labels": _labels(model.config),
        "vocab_size": _vocabulary(model.config),
        "base_dtype": str(_dtype(model)).removeprefix("torch."),
        "model_class": own_class(model).__name__,
    }


def _labels(config: PretrainedConfig) -> dict[str, Any]:
    names = getattr(config, "id2label", None) or {}
    return {
        "id2label": {str(i): name for i, name in names.items()},
        "problem_type": getattr(config, "problem_type", None),
    }


def label_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that give a base the classes and label names that were saved."""
    labels = data.get("labels")
    if not isinstance(labels, dict) or not isinstance(labels.get("id2label"), dict) or not labels["id2label"]:
        return {}
    try:
        names = {int(i): str(name) for i, name in labels["id2label"].items()}
    except ValueError:
        raise CheckpointError(
            "labels without numbers",
            where="labels.id2label of the folder's config",
            got=repr(list(labels["id2label"]))[:200],
            allowed="the numbers of the labels as keys, such as '0'",
            try_="save again; the numbers were changed by hand",
        ) from None
    # The head comes from the file; the base's own may have been of another size.
    options = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "ignore_mismatched_sizes": True}
    return {**options, **({"problem_type": labels["problem_type"]} if labels.get("problem_type") else {})}


def _dtype(model: PreTrainedModel) -> torch.dtype:
    found = (p.dtype for name, p in model.named_parameters() if p.is_floating_point() and not is_adapter(name))
    return next(found, torch.float32)


def dtype_option(data: Mapping[str, Any], folder: Any) -> dict[str, Any]:
    """Return the option of ``from_pretrained`` that gives a base the dtype that it had, whatever its files hold.

    Raises:
        CheckpointError: there is no such dtype.
    """
    name = data.get("base_dtype")
    if name is None or "quantization_config" in (data.get("base_config") or {}):
        return {}
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CheckpointError(
            "the base's dtype is none",
            where=str(folder),
            got=repr(name),
            allowed="such as float32",
            try_="save again: base_dtype was changed; or give the base yourself, which keeps its own",
        )
    return {"dtype": found}


def check_base(data: Mapping[str, Any], model: PreTrainedModel, model_type: str, folder: Any, strict: bool) -> None:
    """Raise unless ``model`` is the base that was adapted, as far as its config tells.

    Args:
        data: ``hfadapt_config.json``.
        model: The base that is to be adapted.
        model_type: What its architecture map says it is.
        folder: Named in the error.
        strict: Also refuse differences that change no shape and that a stock model's code does not read.

    Raises:
        CheckpointError: it is another one; the fields that differ are listed.
    """
    name = data.get("base_model_name_or_path") or data.get("model_class")
    got, allowed, cure = f"{type(model).__name__} ({model_type}", f"{name} ({data.get('base_model_type')}", ""
    saved = data.get("base_config")
    if model_type != data.get("base_model_type"):
        lines = []
    elif saved is None:
        here = _old_hash(model.config)
        if here == data.get("base_config_hash") or not strict:
            return
        lines = []
        got, allowed = f"{got}, config {here}", f"{allowed}, config {data.get('base_config_hash')}"
        cure = (
            "; strict=False if only labels, dropout or token ids differ: this folder is of a version that counted them"
        )
    else:
        if not isinstance(saved, dict) or base_hash(saved) != data.get("base_config_hash"):
            lines = ["base_config is not what was saved"]
        else:
            lines = _differences(saved, model, strict)
            cure = "; strict=False allows fields that change no computation" if strict else ""
        if not lines:
            return
    raise CheckpointError(
        "the adapters belong to another base" + (f"; differing: {', '.join(lines)}" if lines else ""),
        where=str(folder),
        got=f"{got})",
        allowed=f"{allowed})",
        try_=f"load the base that is named in hfadapt_config.json{cure}",
    )


def _differences(saved: Mapping[str, Any], model: PreTrainedModel, strict: bool) -> list[str]:
    here = base_fields(model.config)
    usual: dict[str, Any] = {}
    # Configs of several parts cannot be made without them.
    with contextlib.suppress(Exception):
        usual = base_fields(type(model.config)())
    lines = []
    for key in sorted({*saved, *here}):
        # A release of transformers may add a field, or take one away: it then stands for its default.
        theirs, ours = saved.get(key, usual.get(key)), here.get(key, usual.get(key))
        allowed = not strict and (key in _MAY_DIFFER or key not in usual) and bool(usual)
        if theirs != ours and not allowed:
            lines.append(f"{key} was {theirs!r}, is {ours!r}")
    return lines


def token_rows(
    model: PreTrainedModel, weights: Mapping[str, Tensor] | None = None, prefix: str = ""
) -> dict[str, Tensor]:
    """Return the embeddings of tokens that were added to the named base, which are in no other file.

    Empty where the base is not named, where its own config is not at hand, or where nothing was added.

    Args:
        model: The base.
        weights: Tensors to take in place of the model's, by name (gathered from shards).
        prefix: What stands before the base's names in ``weights``.
    """
    original = _vocabulary_of_the_named(model)
    if original is None:
        return {}
    given = {} if weights is None else weights
    return {
        f"{TOKENS}{side}": whole(given.get(f"{prefix}{name}", weight)).detach()[original:]
        for side, (name, weight) in _token_weights(model).items()
    }


def token_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters of which `token_rows` returns rows."""
    added = _vocabulary_of_the_named(model) is not None
    return [name for name, _ in _token_weights(model).values()] if added else []


def _vocabulary_of_the_named(model: PreTrainedModel) -> int | None:
    """Return how many tokens the named base has, where this model has more and that base's config is at hand."""
    from transformers import AutoConfig

    name = getattr(model.config, "_name_or_path", "")
    size = _vocabulary(model.config)
    original = None
    # A config that is not on this machine (or no longer) says nothing; a save needs no network.
    with contextlib.suppress(OSError, ValueError):
        if name and size:
            original = getattr(
                AutoConfig.from_pretrained(name, local_files_only=True).get_text_config(), "vocab_size", None
            )
    return original if original and size and original < size else None


def _token_weights(model: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """Return ``"input"`` and, where it is not the same, ``"output"`` to the weight of these embeddings and its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[str, Tensor]] = {}
    for side in ("input", "output"):
        embeddings = getattr(model, f"get_{side}_embeddings")()
        if embeddings is not None and all(_weight(embeddings) is not weight for _, weight in found.values()):
            found[side] = names.get(id(_weight(embeddings)), ""), _weight(embeddings)
    return found


def _weight(embeddings: Any) -> Tensor:
    """Return the weight of embeddings; ``nn.Module`` does not say which of its attributes are tensors."""
    return embeddings.weight


def restore_tokens(model: PreTrainedModel, data: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Any) -> None:
    """Give a base that was loaded by its name the vocabulary that was saved.

    Raises:
        CheckpointError: the rows of tokens that the base lacks are not in the file.
    """
    size, here = data.get("vocab_size"), _vocabulary(model.config)
    if not isinstance(size, int) or here is None or size == here:
        return
    rows = tensors.get(f"{TOKENS}input")
    if size > here and (rows is None or rows.dim() != 2 or rows.shape[0] != size - here):
        raise CheckpointError(
            "the base has fewer tokens than the one that was adapted, and the file lacks their embeddings",
            where=str(folder),
            got=f"{here} tokens",
            allowed=f"{size} tokens",
            try_="hfadapt.load(folder, model=base), with the vocabulary that was trained",
        )
    require_finite({key: tensor for key, tensor in tensors.items() if key.startswith(TOKENS)}, folder)
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        if rows is not None and size > here:
            _weight(model.get_input_embeddings())[here:] = rows
            if f"{TOKENS}output" in tensors:
                _weight(model.get_output_embeddings())[here:] = tensors[f"{TOKENS}output"]
