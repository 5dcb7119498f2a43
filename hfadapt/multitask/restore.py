"""Building a ``MultiTaskModel`` from the folder that it wrote: on its own base, whole or not at all."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..adapters import files as adapter_files
from ..adapters import own_files
from ..adapters.activate import compose
from ..adapters.attach import attach
from ..adapters.base_identity import dtype_option, label_options, restore_tokens
from ..adapters.base_model import model_class
from ..adapters.folder_config import HFAdaptConfig
from ..adapters.freeze import head_modules
from ..adapters.load import check_base_of, restore_choice, restore_fusions
from ..adapters.loading_report import read_base
from ..adapters.model_source import name_to_save, read_pretrained
from ..adapters.own_copies import units_of
from ..adapters.restore import all_or_nothing, as_described, meta_copy, rehearsal
from ..adapters.router import restore_routers
from ..errors import CheckpointError, TaskError, did_you_mean
from ..routing.composition import Composition, parse
from ..runtime.attachment import find_attachment
from ..runtime.own_forward import train_in_float32
from .save import KEY, apply
from .task import Task, check_tasks

__all__ = ["load_base", "load_multi_task", "no_tasks", "train_own_head"]

_COUNTED = re.compile("(layers?|blocks|stages|experts|labels)$")


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


def load_base(name: str, own_head: bool, options: dict[str, Any]) -> PreTrainedModel:
    """Load a pretrained base: ``AutoModel``, or the class that its config names when its own head is used.

    Raises:
        TaskError: the base has no head of its own.
        ConfigError: there is no such base.
    """
    import transformers

    if not own_head:
        return read_pretrained(transformers.AutoModel.from_pretrained, name, where="MultiTaskModel", **options)
    config = read_pretrained(transformers.AutoConfig.from_pretrained, name, where="MultiTaskModel")
    known = [getattr(transformers, c, None) for c in config.architectures or ()]
    found = next((c for c in known if c is not None and ("For" in c.__name__ or "LMHead" in c.__name__)), None)
    if found is None:
        raise TaskError(
            "OwnHead needs a base with a head of its own",
            where=name,
            got=", ".join(config.architectures or ()) or "no architecture in config.json",
            allowed="an architecture with a head, such as BertForSequenceClassification",
            try_="MultiTaskModel.from_base(AutoModelForSequenceClassification.from_pretrained(...), tasks, method)",
        )
    return read_pretrained(found.from_pretrained, name, where="MultiTaskModel", **options)


def no_tasks(name: str | os.PathLike[str]) -> TaskError:
    """The error of a name that is neither a saved folder's nor given with tasks."""
    beside = Path(name).parent
    near = did_you_mean(Path(name).name, [path.parent.name for path in beside.glob(f"*/{adapter_files.CONFIG_FILE}")])
    return TaskError(
        "no tasks for this base",
        where=str(name),
        got="tasks=None" if os.path.isdir(name) else "tasks=None, and no folder of that name",
        allowed="a folder that save_pretrained wrote (or its name on the hub), or a base with tasks",
        try_=(near and f"{near} It lies in {beside}")
        or "MultiTaskModel.from_pretrained(name, tasks=[...], method='lora')",
    )


def load_multi_task(
    cls: type[Any],
    folder: str | os.PathLike[str],
    base: PreTrainedModel | str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Any:
    """Load a saved folder on its base, in evaluation mode.

    Raises:
        CheckpointError: the folder is damaged, is no multi-task folder, belongs to another base, or its base is not to
            be found; a base with random weights is never made.
    """
    data = adapter_files.read_config(folder)
    tensors = adapter_files.read_tensors(folder, data.get("weights_sha256"))
    saved = data.get(KEY)
    if not isinstance(saved, dict):
        raise CheckpointError(
            "the folder holds adapters but no tasks",
            where=str(folder),
            got=", ".join(data["adapters"]),
            allowed="a folder that MultiTaskModel.save_pretrained wrote",
            try_="hfadapt.load(folder), or hfadapt.load(folder, model=base) on a base of yours",
        )
    with rehearsal(folder):
        tasks = list(check_tasks(Task.from_dict(description) for description in saved["tasks"]))
        whole = _saved_base(data, saved, tensors, folder) if base is None and saved["train_base"] else None
        twin = None if whole is None else whole()
    users = isinstance(base, PreTrainedModel)
    if twin is None:
        if not isinstance(base, PreTrainedModel):
            base = _find_base(data, tensors, folder, options, base)
        twin = meta_copy(base)
    with rehearsal(folder):
        check_base_of(data, twin, folder)
        _fill_model(cls, twin, tasks, data, saved, tensors, folder)
    adapter_files.check_digest(data, folder)
    if whole is not None:
        base = whole()
    assert isinstance(base, PreTrainedModel)  # one of the two is there
    own = base.state_dict(keep_vars=True) if users else {}
    with all_or_nothing(base, [own[path] for key in tensors if (path := key.removeprefix("base.")) in own]):
        return _fill_model(cls, base, tasks, data, saved, tensors, folder).eval()


def _fill_model(
    cls: type[Any],
    base: PreTrainedModel,
    tasks: list[Task],
    data: Mapping[str, Any],
    saved: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
) -> Any:
    trained = [tensor for key, tensor in tensors.items() if not key.startswith("heads.")]
    model = _rebuild(cls, base, tasks, data, saved["train_base"], own_files.autocast_of(base, trained), tensors)
    for task, name in saved.get("routes", {}).items():
        model.use(task, name)
    apply(model, tensors, str(folder))
    return model


def _rebuild(
    cls: type[Any],
    base: PreTrainedModel,
    tasks: list[Task],
    data: Mapping[str, Any],
    train_base: bool,
    autocast: bool,
    tensors: Mapping[str, Tensor],
) -> Any:
    configs = data["adapters"]
    if not configs:
        return cls.from_base(base, tasks, None, train_base=train_base)
    attached = find_attachment(base)
    if attached is not None:
        raise CheckpointError(
            "the base has adapters already",
            where=type(base).__name__,
            got=", ".join(attached.names),
            allowed="a base as it was loaded, without adapters",
            try_="hfadapt.detach(base) first",
        )
    for name, method in configs.items():
        # a task that was added from an adapter's folder has a copy of the head of its own
        own: dict[str, Any] = {"train_head": False}
        if "own_modules" in data:
            own = own_files.options_of(data, name, base)
        attach(
            base,
            method,
            name,
            freeze_base=not train_base,
            verify=False,
            autocast_adapter_dtype=autocast if name == next(iter(configs)) else None,
            **own,
        )
    own_files.fit_heads(base, list(configs), tensors)
    train_own_head(base, autocast and not train_base)
    restore_fusions(base, data)
    restore_routers(base, data)
    for name, tree in data.get("compositions", {}).items():
        node = parse(tree)
        if not isinstance(node, Composition):
            raise CheckpointError(
                "a named composition is one adapter",
                where=name,
                got=node,
                allowed="Stack, Parallel, Average or another composition of adapters",
                try_="save again; hfadapt_config.json was changed",
            )
        compose(base, name, node)
    restore_choice(base, data)
    config = HFAdaptConfig(
        base_model_name_or_path=name_to_save(base),
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

    kind = model_class(data["model_class"], folder)
    config = dict(saved["base_config"])
    model_type = config.pop("model_type")
    # Each of them may be made by a loop, which takes its time even where nothing is allocated. Experts and labels may
    # be the rows of one tensor.
    numbers = sum(tensor.numel() for tensor in tensors.values())
    many = {key: value for key, value in config.items() if _COUNTED.search(key) and isinstance(value, (int, float))}
    wrong = [f"{key} {value}" for key, value in many.items() if value > (len(tensors) if "layer" in key else numbers)]
    if wrong:
        got = f"{', '.join(wrong)} and {len(tensors)} tensors"
        raise CheckpointError(
            "fewer tensors than the base has parts",
            where=str(folder),
            got=got,
            allowed=f"at most {len(tensors)} layers, and sizes that the tensors' numbers suffice for",
            try_="save again; base_config in hfadapt_config.json was changed, or tensors were lost",
        )
    dtype = dtype_option(data, folder).get("dtype")
    return lambda: kind(transformers.AutoConfig.for_model(model_type, **copy.deepcopy(config))).to(dtype)


def _find_base(
    data: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    options: dict[str, Any],
    name: str | os.PathLike[str] | None = None,
) -> PreTrainedModel:
    """The base that a folder names, or the one of a given name, with the class that the folder says."""
    found = model_class(data["model_class"], folder)
    name = name or data.get("base_model_name_or_path")
    advice = "MultiTaskModel.from_pretrained(folder, base=...), with the model that was adapted or its name (--base)"
    if not name:
        raise CheckpointError(
            "the base has no name, so it cannot be loaded",
            where=str(folder),
            got=data["model_class"],
            allowed="the name or path that the base was loaded by",
            try_=advice,
        )
    dtype = {} if "torch_dtype" in options else dtype_option(data, folder)
    base = read_base(
        found.from_pretrained,
        name,
        tensors,
        error=CheckpointError,
        where=str(folder),
        try_=advice,
        **{**dtype, **label_options(data), **options},
    )
    with as_described(folder):
        restore_tokens(base, data, tensors, folder)
    return base
