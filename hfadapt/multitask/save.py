"""Saving and loading of ``MultiTaskModel``: one folder for hfadapt, for ``AutoModel`` and for Trainer.

``adapter_config.json`` and ``adapter_model.safetensors`` are the format of ``hfadapt.adapters.save`` with heads and, where
the base was trained, its weights. ``config.json`` tells ``AutoModel`` that the folder is ours. ``model.safetensors``,
the only file from which Trainer resumes or reloads the best model, is a hard link to the adapter file (a copy where the
file system knows no links), so nothing is stored twice.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters import files as adapter_files
from ..adapters import own_files
from ..adapters import save as checkpoint
from ..adapters.activate import compose
from ..adapters.atomic import atomic_folder
from ..adapters.attach import attach
from ..adapters.base_identity import TOKENS, describe_base, label_options, restore_tokens, token_rows
from ..adapters.folder_config import HFAdaptConfig, is_marked
from ..adapters.freeze import head_modules
from ..adapters.own_copies import units_of
from ..adapters.restore import all_or_nothing, as_described, meta_copy, rehearsal
from ..adapters.saved_tensors import check_tensors, fill
from ..errors import CheckpointError, TaskError, problem
from ..routing.composition import Composition, parse
from ..runtime.attachment import find_attachment, parameters_of
from ..runtime.own_forward import train_in_float32
from .task import Task, check_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .model import MultiTaskModel

__all__ = ["apply", "is_partial", "is_saved", "load_base", "load_multi_task", "save_multi_task"]

_KEY = "multi_task"
_TRAINER_FILE = adapter_files.TRAINER_FILE
_COUNTED = re.compile("(layers?|blocks|stages|experts|labels)$")
_OTHER_MODEL = "the folder was changed, or was saved with other tasks, another method or another train_base"


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Say whether ``folder`` holds a saved ``MultiTaskModel``, whole or damaged."""
    path = Path(folder)
    if not path.is_dir():
        return False
    adapter_files.settle_for_reading(path)
    return (path / adapter_files.CONFIG_FILE).is_file() or is_marked(path)


def file_keys(model: MultiTaskModel) -> dict[str, str]:
    """Return, for each tensor that a save writes, its key in the file and its key in ``model.state_dict()``."""
    base = model.base
    attached = find_attachment(base)
    keys: dict[str, str] = {}
    adapter_names: set[str] = set()
    if attached is not None:
        prefix = checkpoint._prefix(base)
        for name in attached.names:
            for key in parameters_of(base, name):
                keys[key.removeprefix(prefix)] = f"base.{key}"
                adapter_names.add(key)
        for path, fusion in checkpoint._fusions(base):
            for key, _ in fusion.named_parameters():
                keys[f"{path.removeprefix(prefix)}.{key}"] = f"base.{path}.{key}"
                adapter_names.add(f"{path}.{key}")
    keys.update({f"heads.{key}": f"heads.{key}" for key in model.heads.state_dict()})
    keys.update({f"base.{name}": f"base.{name}" for name in _trained_base(model, adapter_names)})
    return keys


def _trained_base(model: MultiTaskModel, adapter_names: set[str]) -> list[str]:
    """Names of base parameters (and, with a trained base, buffers) that a save must hold."""
    inside = {id(p) for _, p in _adapter_parameters(model.base)}
    names = [n for n, p in model.base.named_parameters() if p.requires_grad and id(p) not in inside]
    if model.config.train_base:
        parameters = dict(model.base.named_parameters(remove_duplicate=False))
        persistent = model.base.state_dict()
        names = [n for n, p in model.base.named_parameters() if id(p) not in inside and n not in adapter_names]
        names += [n for n in persistent if n not in parameters]
    return names


def _adapter_parameters(base: PreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    attached = find_attachment(base)
    names = attached.names if attached is not None else ()
    found = [item for name in names for item in parameters_of(base, name).items()]
    fusions = checkpoint._fusions(base) if attached is not None else []
    return found + [(f"{path}.{key}", p) for path, fusion in fusions for key, p in fusion.named_parameters()]


def train_own_head(base: PreTrainedModel, float32: bool) -> None:
    """Unfreeze the head that the base has (a language-model head counts as base and stays as it is).

    Args:
        base: A stock model that belongs to a ``MultiTaskModel``.
        float32: Keep the head in float32 on a base of lower precision.
    """
    for path, head in head_modules(base).items():
        head.requires_grad_(True)
        for unit in units_of(base, path) if float32 else ():
            train_in_float32(base.get_submodule(unit))


def is_partial(model: MultiTaskModel, state_dict: Mapping[str, Tensor]) -> bool:
    """Say whether a state dict is that of a saved folder: it lacks base weights, or names adapters as files do."""
    own = model.state_dict()
    return any(key not in own for key in state_dict) or any(key not in state_dict for key in own)


def apply(model: MultiTaskModel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors of a saved folder into the model.

    Raises:
        CheckpointError: keys are missing, left over or of another shape; the differences are listed and nothing is
            copied.
    """
    keys = file_keys(model)
    targets = model.state_dict(keep_vars=True)
    # Trainer may also hand over a dict that it gathered under the model's own names
    by_own_name = {own: key for key, own in keys.items()}
    given = {by_own_name.get(key, key): tensor for key, tensor in tensors.items() if not key.startswith(TOKENS)}
    by_key = {key: [targets[own]] for key, own in keys.items()}
    check_tensors(by_key, given, where, try_=_OTHER_MODEL)
    if not any(tensor.is_meta for (tensor,) in by_key.values()):  # else it is only tried
        fill(by_key, given)


def save_multi_task(
    model: MultiTaskModel, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write the folder, atomically.

    Args:
        model: What to save.
        folder: Made if it is missing; other files in it stay, but for Trainer's state of the weights that are replaced
            in a folder ``checkpoint-N``.
        state_dict: Weights to write in place of the model's, by the model's own names (gathered from shards).

    Raises:
        CheckpointError: the files cannot be written, or the folder holds a model or an adapter of another library's.
    """
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {key: weights[own] for key, own in file_keys(model).items()} | token_rows(model.base)
    extra = {
        _KEY: {
            "tasks": [task.to_dict() for task in model.tasks],
            "train_base": model.config.train_base,
            "base_config": model.base.config.to_dict(),
            "routes": model.routes,
        }
    }
    if find_attachment(model.base) is not None:
        extra = {**checkpoint.describe(model.base), **extra}
    else:
        extra = {**_describe_without_adapters(model.base), **extra}
    adapter_files.refuse_foreign(folder)
    with atomic_folder(folder, dropped=adapter_files.outdated(folder)) as temporary:
        weights_file = temporary / adapter_files.WEIGHTS_FILE
        # tied tensors are listed once in file_keys; clones keep views of one storage apart
        packed = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()
        }
        adapter_files.write_files(temporary, extra, packed)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(temporary)
        try:
            os.link(weights_file, temporary / _TRAINER_FILE)
        except OSError:
            shutil.copyfile(weights_file, temporary / _TRAINER_FILE)


def _describe_without_adapters(base: PreTrainedModel) -> dict[str, Any]:
    return {
        "format": "hfadapt",
        "format_version": adapter_files.FIRST_VERSION,
        **describe_base(base, base.config.model_type),
        "adapters": {},
        "compositions": {},
        "active": None,
        "head": [],
        "versions": checkpoint._versions(),
    }


def load_base(name: str, own_head: bool, options: dict[str, Any]) -> PreTrainedModel:
    """Load a pretrained base: ``AutoModel``, or the class that its config names when its own head is used.

    Raises:
        TaskError: the base has no head of its own.
    """
    import transformers

    if not own_head:
        return transformers.AutoModel.from_pretrained(name, **options)
    config = transformers.AutoConfig.from_pretrained(name)
    known = [getattr(transformers, c, None) for c in config.architectures or ()]
    found = next((c for c in known if c is not None and ("For" in c.__name__ or "LMHead" in c.__name__)), None)
    if found is None:
        raise TaskError(
            problem(
                "OwnHead needs a base with a head of its own",
                where=name,
                got=", ".join(config.architectures or ()) or "no architecture in config.json",
                try_="MultiTaskModel.from_base(AutoModelForSequenceClassification.from_pretrained(...), tasks, method)",
            )
        )
    return found.from_pretrained(name, **options)


def load_multi_task(
    cls: type[MultiTaskModel],
    folder: str | os.PathLike[str],
    base: PreTrainedModel | None,
    options: dict[str, Any],
) -> MultiTaskModel:
    """Load a saved folder on its base, in evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, is no multi-task folder, belongs to another base, or its base is not to
            be found; a base with random weights is never made.
    """
    data = adapter_files.read_config(folder)
    tensors = adapter_files.read_tensors(folder, data.get("weights_sha256"))
    saved = data.get(_KEY)
    if not isinstance(saved, dict):
        raise CheckpointError(
            problem(
                "the folder holds adapters but no tasks",
                where=str(folder),
                got=", ".join(data["adapters"]),
                try_="hfadapt.load(folder), or hfadapt.load(folder, model=base) on a base of yours",
            )
        )
    with rehearsal(folder):
        tasks = list(check_tasks(Task.from_dict(description) for description in saved["tasks"]))
        whole = _saved_base(data, saved, tensors, folder) if base is None and saved["train_base"] else None
        twin = None if whole is None else whole()
    users = base is not None
    if twin is None:
        base = _find_base(data, tensors, folder, options) if base is None else base
        twin = meta_copy(base)
    with rehearsal(folder):
        checkpoint.check_base_of(data, twin, folder)
        _fill_model(cls, twin, tasks, data, saved, tensors, folder)
    adapter_files.check_digest(data, folder)
    if whole is not None:
        base = whole()
    assert base is not None  # one of the two is there
    own = base.state_dict(keep_vars=True) if users else {}
    with all_or_nothing(base, [own[path] for key in tensors if (path := key.removeprefix("base.")) in own]):
        return _fill_model(cls, base, tasks, data, saved, tensors, folder).eval()


def _fill_model(
    cls: type[MultiTaskModel],
    base: PreTrainedModel,
    tasks: list[Task],
    data: Mapping[str, Any],
    saved: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
) -> MultiTaskModel:
    trained = [tensor for key, tensor in tensors.items() if not key.startswith("heads.")]
    model = _rebuild(cls, base, tasks, data, saved["train_base"], own_files.autocast_of(base, trained))
    for task, name in saved.get("routes", {}).items():
        model.use(task, name)
    apply(model, tensors, str(folder))
    return model


def _rebuild(
    cls: type[MultiTaskModel],
    base: PreTrainedModel,
    tasks: list[Task],
    data: Mapping[str, Any],
    train_base: bool,
    autocast: bool,
) -> MultiTaskModel:
    configs = data["adapters"]
    if not configs:
        return cls.from_base(base, tasks, None, train_base=train_base)
    if find_attachment(base) is not None:
        raise CheckpointError(problem("the base has adapters already", try_="hfadapt.detach(base) first"))
    for name, method in configs.items():
        attach(
            base,
            method,
            name,
            freeze_base=not train_base,
            train_head=False,
            verify=False,
            autocast_adapter_dtype=autocast if name == next(iter(configs)) else None,
        )
    train_own_head(base, autocast and not train_base)
    checkpoint.restore_fusions(base, data)
    for name, tree in data.get("compositions", {}).items():
        node = parse(tree)
        if not isinstance(node, Composition):
            raise CheckpointError(problem("a named composition is one adapter", where=name, got=node))
        compose(base, name, node)
    config = HFAdaptConfig(
        base_model_name_or_path=getattr(base.config, "_name_or_path", "") or None,
        tasks=[task.to_dict() for task in tasks],
        base_class=type(base).__name__,
        train_base=train_base,
    )
    return cls(config, base, tasks)


def _saved_base(
    data: Mapping[str, Any], saved: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str | os.PathLike[str]
) -> Callable[[], PreTrainedModel]:
    """Return what builds a base whose weights are all in the file, as its saved config says.

    Raises:
        CheckpointError: there is no such class, or the config speaks of more layers than the file has tensors.
    """
    import transformers

    kind = checkpoint.model_class(data["model_class"], folder)
    config = dict(saved["base_config"])
    model_type = config.pop("model_type")
    # Each of them may be made by a loop, which takes its time even where nothing is allocated. Experts and labels may
    # be the rows of one tensor.
    numbers = sum(tensor.numel() for tensor in tensors.values())
    many = {key: value for key, value in config.items() if _COUNTED.search(key) and isinstance(value, (int, float))}
    wrong = [f"{key} {value}" for key, value in many.items() if value > (len(tensors) if "layer" in key else numbers)]
    if wrong:
        got = f"{', '.join(wrong)} and {len(tensors)} tensors"
        raise CheckpointError(problem("fewer tensors than the base has parts", where=str(folder), got=got))
    return lambda: kind(transformers.AutoConfig.for_model(model_type, **copy.deepcopy(config)))


def _find_base(
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    options: dict[str, Any],
) -> PreTrainedModel:
    found = checkpoint.model_class(data["model_class"], folder)
    name = data.get("base_model_name_or_path")
    advice = "MultiTaskModel.from_pretrained(folder, base=model), with the model that was adapted"
    if not name:
        raise CheckpointError(
            problem(
                "the base has no name, so it cannot be loaded", where=str(folder), got=data["model_class"], try_=advice
            )
        )
    try:
        base = found.from_pretrained(name, **{**label_options(data), **options})
    except (OSError, ValueError) as error:
        raise CheckpointError(
            problem("the base cannot be loaded", where=str(folder), got=f"{name!r}: {error}", try_=advice)
        ) from error
    with as_described(folder):
        restore_tokens(base, data, tensors, folder)
    return base
