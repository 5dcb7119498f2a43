"""Reads what the PALs paper's own script trained: ``load_bert_n_pals``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfadapt.adapters.formats import as_described, check_tensors, fill, read_json, read_pickle, read_safetensors
from hfadapt.adapters.formats import require_folder as require_path
from hfadapt.errors import CheckpointError, did_you_mean

from .script_names import base_name, parameter_name
from .script_options import BERT_FIELDS, OPTIONS, adapted_layers, configs_of

if TYPE_CHECKING:
    from hfadapt import MethodConfig, MultiTaskModel, Task

__all__ = ["load_bert_n_pals"]

_WHERE = "load_bert_n_pals"
_HEAD = re.compile(r"classifier\.(\d+)\.weight")
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")
# Written beside those of `OPTIONS`, and known from the tensors.
_COUNTS = ("num_tasks", "num_labels")
# V_E and V_D of a task, which stand once in the model and at every layer in the file.
_SHARED = re.compile(r"bert\.encoder\.layer\.\d+\.(?:output\.)?multi_layers\.(\d+)\.aug_dense(2?)\.(weight|bias)")


def load_bert_n_pals(
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str],
    *,
    tasks: Iterable[str | Task] | None = None,
) -> MultiTaskModel:
    """Read a checkpoint of the script of Stickland & Murray 2019 (github.com/AsaCooperStickland/Bert-n-Pals).

    PALs, low-rank layers, LHUC, the Houlsby-like adapters, projected attention and whole layers on top, beside all
    layers or some, and BERT shared without any of these. The base is read too, because the script trains it along.

    Args:
        checkpoint: The file with the ``state_dict`` of the script's model. A name that ends in ``.safetensors`` is read
            as such; any other is a pickle, of which tensors alone are opened (``weights_only=True``).
        config: The script's ``--bert_config_file``. With ``--h_aug`` on the command line, its number has to stand in it
            as ``hidden_size_aug``.
        tasks: Their names, or `Task` objects, in the script's order; by default ``task0`` and so on, a regression where
            the head has one output.

    Returns:
        A ``MultiTaskModel`` in evaluation mode, whose base trains along.

    Raises:
        CheckpointError: a file is missing or damaged, the config has unknown fields or does not make the tensors that
            are there, or the tasks are others.
        TaskError: the tasks cannot be made.
    """
    path, described = (require_path(one, where=_WHERE) for one in (checkpoint, config))
    fields = _fields(described)
    tensors = _tensors(path)
    made = _tasks(tasks, tensors, path)
    options = {key: fields.get(key, default) for key, default in OPTIONS.items()}
    layers = adapted_layers(tensors)
    _check_sizes(fields, options, tensors, described)
    with as_described(described):
        configs = configs_of(options, layers or tuple(range(fields["num_hidden_layers"])))
        # first where sizes cost nothing
        with torch.device("meta"):
            check_tensors(
                _targets(_build(fields, made, configs)), tensors, path, try_=f"the {described.name} of that run"
            )
        model = _build(fields, made, configs)
    fill(_targets(model), tensors)
    return model.eval()


def _fields(path: Path) -> dict[str, Any]:
    """Return the config's fields.

    Raises:
        CheckpointError: it cannot be read, or a field is missing, unknown or of another kind.
    """
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            "no config of the script",
            where=str(path),
            got="no such file",
            allowed=f"a JSON file with {', '.join(BERT_FIELDS)}",
            try_="the file that --bert_config_file named",
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(
            "the config holds no fields",
            where=str(path),
            got=type(data).__name__,
            allowed="one JSON object: {...}",
            try_="the file that --bert_config_file named",
        )
    known = (*BERT_FIELDS, *OPTIONS, *_COUNTS)
    unknown = [key for key in data if key not in known]
    missing = [key for key in BERT_FIELDS if key not in data]
    if unknown or missing:
        got = ", ".join([*(f"unknown {key}" for key in unknown), *(f"no {key}" for key in missing)])
        raise CheckpointError(
            "not a config of the Bert-n-Pals script",
            where=str(path),
            got=got[:300],
            allowed=", ".join(known),
            try_=did_you_mean(unknown[0], known) if unknown else "the file that --bert_config_file named",
        )
    kinds = {**BERT_FIELDS, **{key: bool for key, value in OPTIONS.items() if value is False}}
    kinds |= {"hidden_size_aug": int, "extra_dim": (int, type(None))}
    wrong = [
        key
        for key, kind in kinds.items()
        if key in data and (not isinstance(data[key], kind) or (isinstance(data[key], bool) and kind is not bool))
    ]
    if wrong:
        got = ", ".join(f"{key}: {data[key]!r}" for key in wrong)
        raise CheckpointError(
            "fields of another kind",
            where=str(path),
            got=got[:300],
            allowed="numbers, true or false",
            try_=f'"{wrong[0]}": {_example(kinds[wrong[0]])}',
        )
    return data


def _example(kind: Any) -> str:
    """A value of a field's kind, as JSON has it."""
    return {bool: "true", float: "0.1", str: '"gelu"'}.get(kind, "12")


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the checkpoint's tensors, shared ones once.

    Raises:
        CheckpointError: it cannot be read; or what tasks share is not the same at all layers.
    """
    found = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if found and all(key.startswith("module.") for key in found):  # saved through DataParallel
        found = {key.removeprefix("module."): tensor for key, tensor in found.items()}
    for key in list(found):
        match = _SHARED.fullmatch(key)
        main = match and f"bert.encoder.mult_aug_dense{match[2]}.{match[1]}.{match[3]}"
        if main in found:
            again = found.pop(key)
            if not torch.equal(again, found[main]):
                raise CheckpointError(
                    "what a task's layers share differs between them",
                    where=str(path),
                    got=key,
                    allowed=f"the numbers of {main}",
                    try_="the state_dict that the script saved, in which all layers hold one tensor",
                )
    return found


def _tasks(given: Iterable[str | Task] | None, tensors: Mapping[str, Tensor], path: Path) -> list[Task]:
    """Return the tasks, in the order of the heads.

    Raises:
        CheckpointError: there are no heads, or not one for each task.
    """
    from hfadapt import Classification, Regression, Task

    heads = {int(match[1]): tensor for key, tensor in tensors.items() if (match := _HEAD.fullmatch(key))}
    outputs = [heads[i].shape[0] if i in heads and heads[i].dim() == 2 else 0 for i in range(len(heads))]
    if not outputs or 0 in outputs:
        got = ", ".join(f"classifier.{i}: {list(t.shape)}" for i, t in sorted(heads.items())) or "none"
        raise CheckpointError(
            "no heads of the script's tasks",
            where=str(path),
            got=got,
            allowed="classifier.0.weight [C, D] and so on",
            try_="the state_dict of the whole model, not of its bert alone",
        )
    names: list[Any] = [f"task{i}" for i in range(len(outputs))]
    if given is not None:
        listed = (given,) if isinstance(given, (str, Task)) else given
        names = list(listed) if isinstance(listed, Iterable) and not isinstance(listed, Tensor) else [given]
    if len(names) != len(outputs) or not all(isinstance(one, (str, Task)) for one in names):
        raise CheckpointError(
            "the tasks are not those of the checkpoint",
            where=f"{_WHERE}, tasks",
            got=repr(names)[:200],
            allowed=f"{len(outputs)} names or Task objects, for heads of {outputs} outputs",
            try_="tasks=None, the default",
        )
    return [
        one
        if isinstance(one, Task)
        else Task(one, Regression(pooling="pooler") if n == 1 else Classification(n, pooling="pooler"))
        for one, n in zip(names, outputs, strict=True)
    ]


def _check_sizes(
    fields: Mapping[str, Any], options: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Raise where numbers of the config that cost time or memory are not those of the tensors.

    Raises:
        CheckpointError: see above.
    """
    layers = len({int(match[1]) for key in tensors if (match := _LAYER.match(key))})
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    sizes = {key: options[key] for key in ("hidden_size_aug", "extra_dim") if key in fields and options[key]}
    wrong = [f"{key}: {size}" for key, size in sizes.items() if not 0 < size <= largest]
    if fields["num_hidden_layers"] != layers:
        wrong.append(f"num_hidden_layers: {fields['num_hidden_layers']}, and {layers} in the checkpoint")
    if wrong:
        raise CheckpointError(
            "the config is of another checkpoint",
            where=str(path),
            got="; ".join(wrong),
            allowed=f"num_hidden_layers: {layers}, and sizes of 1 to {largest}",
            try_="the file that --bert_config_file named in that run",
        )


def _build(fields: Mapping[str, Any], tasks: list[Task], configs: tuple[MethodConfig, ...]) -> MultiTaskModel:
    from transformers import BertConfig, BertModel

    from hfadapt import MultiTaskModel

    bert = {key: fields[key] for key in BERT_FIELDS}
    # The script reads hidden_act and uses gelu.
    base = BertModel(BertConfig(**{**bert, "hidden_act": "gelu"}))
    return MultiTaskModel.from_base(base, tasks, configs or None, train_base=True)


def _targets(model: MultiTaskModel) -> dict[str, list[Tensor]]:
    """Return where each tensor goes, by the script's name."""
    from hfadapt import attachment, parameters_of

    targets: dict[str, list[Tensor]] = {
        base_name(name): [parameter]
        for name, parameter in model.base.named_parameters()
        if not {"hfadapt", "hfadapt_shared"} & {*name.split(".")}
    }
    for number, task in enumerate(model.tasks):
        if "_hfadapt" in model.base.__dict__ and task.name in attachment(model.base).names:
            for path, parameter in parameters_of(model.base, task.name).items():
                targets[parameter_name(path, number)] = [parameter]
        head: Any = model.heads[task.name]
        targets |= {f"classifier.{number}.{kind}": [getattr(head.out_proj, kind)] for kind in ("weight", "bias")}
    return targets
