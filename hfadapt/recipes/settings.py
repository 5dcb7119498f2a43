"""What a recipe says, in one form: short and long ways to write a thing, and what is left out, come to the same."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.sources import format_of
from ..method.config import MethodConfig
from .build import TRAINING_DEFAULTS, known_task
from .config import TaskSection
from .config.recipe import NO_KEY

if TYPE_CHECKING:
    from .config import Recipe

__all__ = ["Setting", "flat", "settings_of"]

# Of the record; and where a run writes says nothing of what it did.
_NO_SETTINGS = ("source", "overrides", "resolved", "output")


@dataclass(frozen=True)
class Setting:
    """One value of a recipe.

    Args:
        value: A scalar, or a list of scalars.
        default: Whether a recipe that leaves it out has the same.
    """

    value: Any
    default: bool = False


def settings_of(recipe: Recipe, started: Path | None = None) -> dict[str, Setting]:
    """Every setting of a recipe by the path that an override would write.

    Args:
        recipe: As it was read; the objects made from its names tell their options.
        started: The folder from which its relative paths count.

    Returns:
        Path to setting. Tasks stand under their names, methods under their numbers (``method.0.r``); a list of one
        word is that word.
    """
    named = dataclasses.replace(recipe, tasks=tuple(_filled(task, started) for task in recipe.tasks))
    found = {}
    for field in dataclasses.fields(named):
        if field.name not in _NO_SETTINGS:
            found.update(flat(getattr(named, field.name), field.name, _default(field)))
    found["tasks"] = Setting([task.name for task in recipe.tasks])
    found["model"] = Setting(_settled(recipe.model, started))
    found["baselines"] = Setting(sorted(recipe.baselines), default=not recipe.baselines)
    return {path: one for path, one in found.items() if path.partition(".")[0] != "training"} | _training(recipe)


def flat(value: Any, path: str = "", default: Any = dataclasses.MISSING) -> Iterator[tuple[str, Setting]]:
    """Every scalar below a value by its path: of mappings, lists of things with a name, and configs of any kind."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (list, tuple)) and any(not _is_scalar(item) for item in value):
        for number, item in enumerate(value):
            yield from flat(item, f"{path}.{_name_of(item, number)}")
    elif isinstance(value, (list, tuple)):
        words = list(value)
        is_default = isinstance(default, (list, tuple)) and words == list(default)
        yield path, Setting(words[0] if len(words) == 1 else words, is_default)
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from flat(below, f"{path}.{key}" if path else str(key))
    elif _is_scalar(value):
        yield path, Setting(value, type(value) is type(default) and value == default)
    else:
        kind, options = _options(value)
        defaults = _defaults(type(value))
        if kind is not None:
            yield f"{path}.{kind[0]}", Setting(kind[1])
        for name, option in options.items():
            yield from flat(option, f"{path}.{name}", defaults.get(name, dataclasses.MISSING))


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _name_of(item: Any, number: int) -> Any:
    if isinstance(item, Mapping):
        return item.get("name", number)
    return item.name if isinstance(item, TaskSection) else number


def _options(thing: Any) -> tuple[tuple[str, str] | None, Mapping[str, Any]]:
    """The key and the name by which a recipe asks for a thing, and the options beside it."""
    from .. import plugins
    from ..multitask.heads.base import heads

    if isinstance(thing, MethodConfig):
        fields = thing.to_dict()
        return ("method", fields.pop("method")), fields
    kind = None
    for key, registry in (("kind", heads()), ("name", plugins.mixing_strategies()), ("name", plugins.regularizers())):
        kind = kind or next(((key, name) for name in registry if registry[name] is type(thing)), None)
    if not dataclasses.is_dataclass(thing):
        return kind, vars(thing)  # a strategy holds nothing but its options
    keys = [field.name for field in dataclasses.fields(thing) if NO_KEY not in field.metadata]
    if isinstance(thing, TaskSection):
        keys.remove("name")  # under which it stands
    return kind, {key: getattr(thing, key) for key in keys}


def _defaults(cls: type) -> dict[str, Any]:
    """What a thing has that was made without a word beside what it must be told."""
    if dataclasses.is_dataclass(cls):
        given = {field.name: _default(field) for field in dataclasses.fields(cls)}
    else:
        parameters: Iterable[inspect.Parameter] = inspect.signature(cls).parameters.values()
        given = {one.name: one.default for one in parameters if one.default is not one.empty}
    try:
        made = cls()  # which fills in what stands for something else, as a regularizer's mode does
    except Exception:  # it cannot be made without arguments; a third party's may say so in any way
        return given
    return {name: getattr(made, name, default) for name, default in given.items()}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _filled(task: TaskSection, started: Path | None) -> TaskSection:
    """A task with what its data set tells by its name, and without what says nothing."""
    data = task.data if task.data is not None else task.name
    known = known_task(data, rows=False) if isinstance(data, str) else None
    head = task.head or (known.head if known else None)
    metrics = tuple(task.metrics) or (tuple(known.metrics) if known and task.head is None else ())
    if known is not None:
        data = str(data).removeprefix("glue:")
    elif isinstance(data, str):
        data = _settled(data, started)
        data = {"train": data} if format_of(Path(data)) else data
    else:
        data = {split: _settled(path, started) for split, path in data.items()}
    return dataclasses.replace(
        task,
        data=data,
        head=head,
        metrics=metrics or (head.default_metrics if head else ()),
        columns=_other_names(task.columns or (known.columns if known else {})),
        splits=_other_names(task.splits or (known.splits if known else {})),
        label_names=task.label_names or (known.label_names if known else None),
    )


def _other_names(names: Mapping[str, str]) -> dict[str, str]:
    return {role: name for role, name in names.items() if role != name}


def _settled(path: str, started: Path | None) -> str:
    """A path as a whole one, where something stands there; a name as it is."""
    place = (started or Path()) / path
    return os.path.normpath(place.absolute()) if place.exists() else path


def _training(recipe: Recipe) -> dict[str, Setting]:
    """The section's fields: a run that leaves one out has hfadapt's default, or that of transformers."""
    from transformers import TrainingArguments

    own = {field.name: _default(field) for field in dataclasses.fields(TrainingArguments)}
    own.update(TRAINING_DEFAULTS)
    found = {}
    for name, default in own.items():
        found.update(flat(recipe.training.get(name, default), f"training.{name}", default))
    return found
