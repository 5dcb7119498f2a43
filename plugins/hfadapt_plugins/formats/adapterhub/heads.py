"""AdapterHub's heads: those of stock classes by name, and flexible ones on the class that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hfadapt.adapters.formats import head_modules

from .folder import base_path, refused

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["CLASSES", "head_tensors"]

#: What ``AutoModel...`` of transformers has a head for each of AdapterHub's.
CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "multilabel_classification": "AutoModelForSequenceClassification",
    "tagging": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
    "image_classification": "AutoModelForImageClassification",
}
_SUFFIXES = {
    "classification": "ForSequenceClassification",
    "multilabel_classification": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
    "image_classification": "ForImageClassification",
}
#: Of heads with two linears: those of stock classes, and the function between them. ``{base}`` is the base's path.
_TWO = (
    (("{base}pooler.dense", "classifier"), "tanh"),
    (("classifier.dense", "classifier.out_proj"), "tanh"),
    (("pre_classifier", "classifier"), "relu"),
)
# ELECTRA's class has RoBERTa's names and another function.
_ACTIVATIONS = {"electra": "gelu"}
_ONE = ("classifier", "qa_outputs", "score", "classifier.out_proj")


def head_tensors(
    data: Mapping[str, Any], file: dict[str, Tensor], model: PreTrainedModel, folder: Path
) -> dict[str, Tensor]:
    """Return the tensors of a head by the names that the model's own have.

    Args:
        data: Content of ``head_config.json``.
        file: The tensors.
        model: Of a class with a head that computes this one.
        folder: For errors.

    Raises:
        CheckpointError: the model's class has no such head, or the files do not fit together.
    """
    config, name = data.get("config"), data.get("name")
    if config is None:
        return _static(data, file, model, folder)
    if not isinstance(config, dict) or not isinstance(name, str):
        raise refused("head_config.json is damaged", folder, f"name {name!r}, config {config!r}"[:200])
    # By its whole name: where one head's name begins with another's, the library writes both.
    start = f"heads.{name}."
    given = {key.removeprefix(start): tensor for key, tensor in file.items() if key.startswith(start)}
    if not given:
        raise refused("the file holds no head of that name", folder, repr(name), "", ", ".join(sorted(file)[:3]))
    linears = sorted({key.rpartition(".")[0] for key in given}, key=lambda one: (len(one), one))
    paths = _paths(config, len(linears), model, folder)
    whole = {}
    for number, path in zip(linears, paths, strict=True):
        whole |= {
            f"{path}.{part}": given[f"{number}.{part}"] for part in ("weight", "bias") if f"{number}.{part}" in given
        }
    if len(whole) != len(given):
        raise refused("a head of other parts than linears", folder, ", ".join(sorted(given))[:200])
    return whole


def _static(
    data: Mapping[str, Any], file: dict[str, Tensor], model: PreTrainedModel, folder: Path
) -> dict[str, Tensor]:
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    heads = tuple(f"{path}." for path in head_modules(model))
    strange = [key for key in file if key not in own or not key.startswith(heads)] if heads else list(file)
    if strange:
        raise refused(
            f"the file holds a head that {type(model).__name__} has not",
            folder,
            f"{strange[0]}, of {data.get('model_class')}",
            f"load it on a model of the class {data.get('model_class')}",
        )
    return dict(file)


def _paths(config: Mapping[str, Any], count: int, model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Return the linears of the model's own head that compute a flexible one.

    Raises:
        CheckpointError: it has none that do.
    """
    kind, act = str(config.get("head_type")), config.get("activation_function")
    cls, modules = type(model).__name__, dict(model.named_modules())
    suffix = _SUFFIXES.get(kind)
    if suffix is None or not cls.endswith(suffix):
        cure = f"transformers.{CLASSES[kind]}" if kind in CLASSES else "its adapter alone, and a head trained anew"
        raise refused(f"a head of the kind {kind!r} has no place in {cls}", folder, f"head_type {kind!r}", cure)
    base = base_path(model)
    pooled = bool(config.get("use_pooler"))
    if count == 2 and not pooled:
        for pair, between in _TWO:
            paths = tuple(path.format(base=base) for path in pair)
            there = all(isinstance(modules.get(path), nn.Linear) for path in paths)
            if there and act == _ACTIVATIONS.get(model.config.model_type, between):
                return paths
    reads_pooled = isinstance(modules.get(f"{base}pooler.dense"), nn.Linear) and not kind.startswith(
        ("tag", "question")
    )
    if count == 1 and pooled == reads_pooled:
        path = next((p for p in _ONE if isinstance(modules.get(p), nn.Linear)), None)
        two = any(all(q.format(base=base) in modules for q in pair) for pair, _ in _TWO[1:])
        if path is not None and (pooled or not two or kind.startswith(("tag", "question"))):
            return (path,)
    raise refused(
        f"{cls} computes another head than this one",
        folder,
        f"{count} linears, {act!r} between them, use_pooler={pooled}",
        "its adapter alone (leave the head's files out), and a head trained anew",
    )
