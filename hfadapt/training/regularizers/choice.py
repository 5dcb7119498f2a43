"""What a user may write for a regularizer, turned into regularizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import plugins
from ...errors import ConfigError
from ...routing.task_ids import task_number
from .regularizer import Regularizer

__all__ = ["Choice", "chosen", "make_regularizer"]

Choice = str | Regularizer | Mapping[str, Any]


def make_regularizer(choice: Choice, options: Mapping[str, Any] | None = None) -> Regularizer:
    """Return a regularizer from an object, a registered name, or options with a ``name`` among them.

    Args:
        choice: One of these.
        options: Of one given by name.

    Raises:
        RegistryError: none has that name; the nearest is said.
        ConfigError: an option is unknown or not allowed, or this is no regularizer.
    """
    options = dict(options or {})
    if isinstance(choice, Mapping) and isinstance(choice.get("name"), str):
        options = {**{k: v for k, v in choice.items() if k != "name"}, **options}
        choice = choice["name"]
    if isinstance(choice, str):
        kind = plugins.regularizers()[choice]
        return kind.from_dict(options)
    if isinstance(choice, Regularizer):
        if options:
            raise ConfigError(
                "options beside a regularizer that holds its own",
                where="regularize",
                got=", ".join(options),
                allowed="options beside a name, or the object alone",
                try_=f"{type(choice).__name__}({', '.join(f'{name}=...' for name in options)})",
            )
        return choice
    given = choice.__name__ if isinstance(choice, type) else repr(choice)
    raise ConfigError(
        "not a regularizer",
        where="regularize",
        got=given,
        allowed=f"a hfadapt.Regularizer, one of {', '.join(plugins.regularizers())}, or options with a 'name'",
        try_=f"{given}()" if isinstance(choice, type) and issubclass(choice, Regularizer) else "",
    )


def chosen(choice: Choice, options: Mapping[str, Any], model: Any) -> dict[int | None, Regularizer]:
    """Return the regularizer of each task, by number; under None that of all.

    Raises:
        RegistryError: no regularizer has a given name.
        RoutingError: there is no such task.
        ConfigError: an option is not allowed, or tasks are named and the model has none.
    """
    if not isinstance(choice, Mapping) or isinstance(choice.get("name"), str):
        return {None: make_regularizer(choice, options)}
    names = [task.name for task in getattr(model, "tasks", ())]
    if not names or options or not choice:
        raise ConfigError(
            "regularizers by task need a model with tasks, and each its own options",
            where="regularize",
            got=f"{type(model).__name__}, {dict(choice)!r}, {dict(options)!r}",
            allowed="{task: regularizer} for a MultiTaskModel; one regularizer for every other model",
            try_="regularize(trainer, 'smart'); options of one regularizer need its 'name' beside them",
        )
    found: dict[int | None, Regularizer] = {}
    for task, one in choice.items():
        number = task_number(task, names)
        if one is not None:
            found[number] = make_regularizer(one)
    return found
