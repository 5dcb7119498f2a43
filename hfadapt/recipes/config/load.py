"""Read a recipe: text, overrides, checks of every section, and one error that lists everything that is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, HFAdaptError, did_you_mean
from ...errors.names import names_of
from .check import BAD, in_range, known_keys, mapping_of, value_of
from .recipe import EarlyStoppingSection, MixingSection, Recipe, TaskSection
from .search import search
from .training import baselines, training
from .tree import Node, Problems, override, parse

__all__ = ["load_recipe", "read_recipe"]

RANGES: Mapping[str, Mapping[str, Any]] = {
    "head_learning_rate": {"above": 0, "optional": True},
    "adapter_drop": {"whole": True, "least": 0, "optional": True},
    "seed": {"whole": True, "least": 0},
    "batch_size": {"whole": True, "least": 1},
    "epoch_steps": {"whole": True, "least": 1, "optional": True},
    "bucket_steps": {"whole": True, "least": 1},
    "patience": {"whole": True, "least": 1},
    "threshold": {"least": 0},
    "learning_rate": {"least": 0, "optional": True},
    "weight_decay": {"least": 0, "optional": True},
    "loss_weight": {"above": 0},
    "max_length": {"whole": True, "least": 4, "optional": True},
}
"""Key of a recipe to what ``require_number`` takes; fields of TrainingArguments have theirs in ``hfadapt.training``."""
# Of the record, and no keys; "fast" lists overrides and is gone once they are applied.
_OF_THE_RECORD = ("source", "overrides", "resolved")
SECTIONS = (*(field.name for field in dataclasses.fields(Recipe) if field.name not in _OF_THE_RECORD), "fast")


def load_recipe(path: str | Path, overrides: str | Iterable[str] = (), *, fast: bool = False) -> Recipe:
    """Read a recipe file.

    Args:
        path: The YAML file.
        overrides: ``key.sub=value`` assignments, applied in order; a string is one.
        fast: Apply the recipe's own ``fast`` overrides first.

    Raises:
        ConfigError: lists every problem with its line: unknown keys with the nearest known one, mistyped values,
            names of methods, strategies or heads that do not exist.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            "the recipe cannot be read",
            where=str(path),
            got=error.strerror,
            allowed="a YAML file that this process can read",
            try_="hfadapt train examples/...",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the recipe is no text",
            where=str(path),
            got=f"{error.object[error.start : error.start + 4]!r} at byte {error.start}, which is not UTF-8",
            allowed="a YAML file in UTF-8",
            try_="look whether the name is that of the recipe; or save it as UTF-8",
        ) from error
    return read_recipe(text, overrides, fast=fast, source=str(path))


def read_recipe(
    text: str, overrides: str | Iterable[str] = (), *, fast: bool = False, source: str = "recipe"
) -> Recipe:
    """Read a recipe from its text; see ``load_recipe``."""
    problems = Problems(source)
    root = parse(text, problems)
    if not isinstance(root.value, dict):
        problems.add(
            root,
            "a recipe is a mapping",
            got=root.kind,
            allowed=", ".join(SECTIONS),
            try_="model: ..., tasks: [...], method: ...",
        )
        problems.raise_if_any()
    changes = (*_fast(root, fast, problems), *names_of(overrides))
    for assignment in changes:
        override(root, assignment, problems)
    resolved = root.to_yaml()
    known_keys(root, SECTIONS, problems)
    values = {
        "model": _plain(root, "model", str, problems),
        "tasks": _tasks(root, problems),
        "method": _method(root, problems),
        "mixing": _mixing(root, problems),
        "training": training(root.value.get("training"), problems),
        "head_learning_rate": _plain(root, "head_learning_rate", float | None, problems, None),
        "train_base": _plain(root, "train_base", bool, problems, False),
        "adapter_drop": _plain(root, "adapter_drop", int | None, problems, None),
        "early_stopping": _early_stopping(root, problems),
        "regularizer": _regularizer(root, problems),
        "baselines": baselines(root, problems),
        "score_split": _plain(root, "score_split", Literal["test", "validation"], problems, "test"),
        "score_depths": _depths(root, problems),
        "search": _search(root, problems),
        "output": _plain(root, "output", str, problems, "runs/hfadapt"),
        "seed": _plain(root, "seed", int, problems, 42),
    }
    problems.raise_if_any()
    return Recipe(**values, source=text, overrides=changes, resolved=resolved)


_REQUIRED = object()


def _plain(root: Node, key: str, hint: Any, problems: Problems, default: Any = _REQUIRED) -> Any:
    node = root.value.get(key)
    if node is None:
        if default is _REQUIRED:
            problems.add(
                root,
                f"key {key!r} is missing",
                got=", ".join(root.value) or "no key",
                allowed="the base's name on the hub, its folder, or package:NAME",
                try_=f"{key}: ...",
            )
        return default
    return _number_in_range(node, key, value_of(node, hint, problems), problems)


def _number_in_range(node: Node, key: str, value: Any, problems: Problems) -> Any:
    return in_range(node, key, value, RANGES[key], problems) if key in RANGES else value


def _ranges_of(node: Node, values: Any, problems: Problems) -> Any:
    """The values of a section, each in its range; ``BAD`` takes the place of one that is not."""
    if values is BAD:
        return BAD
    return {key: _number_in_range(node.value.get(key, node), key, value, problems) for key, value in values.items()}


def _fast(root: Node, fast: bool, problems: Problems) -> Sequence[str]:
    node = root.value.pop("fast", None)
    if node is None:
        if fast:
            problems.add(
                root,
                "--fast was asked for, but the recipe has no section 'fast'",
                got=", ".join(root.value),
                allowed="a recipe with a list of overrides under 'fast'",
                try_="fast: [training.num_train_epochs=1]",
            )
        return ()
    values = value_of(node, tuple[str, ...], problems)
    return values if fast and values is not BAD else ()


def _tasks(root: Node, problems: Problems) -> Any:
    node = root.value.get("tasks")
    if node is None or not isinstance(node.value, list) or not node.value:
        problems.add(
            node or root,
            "'tasks' must list at least one task",
            got=node.kind if node else "nothing",
            allowed="a list of names of data sets, or of mappings with name, data, head",
            try_="tasks: [sms_spam]",
        )
        return BAD
    tasks = []
    for item in node.value:
        if isinstance(item.value, str):
            item = Node({"name": item}, item.path, item.line)
        tasks.append(_task(item, problems))
    seen: set[str] = set()
    for task, item in zip(tasks, node.value, strict=True):
        if task is not BAD and task.name in seen:
            problems.add(
                item,
                f"task name {task.name!r} is used twice",
                got=task.name,
                allowed="a name of its own for each task",
                try_=f"{{name: {task.name}_2, data: ...}}",
            )
        elif task is not BAD:
            seen.add(task.name)
    return tuple(tasks)


def _task(node: Node, problems: Problems) -> Any:
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "a task is a name or a mapping",
            got=node.kind,
            allowed="the name of a data set, or a mapping with name, data, head",
            try_="{name: mine, data: mine.csv}",
        )
        return BAD
    head = node.value.get("head")
    own = ("head", "regularizer")
    section = _ranges_of(node, mapping_of(node, TaskSection, problems, skip=own), problems)
    built = _head(head, problems) if head is not None else None
    regularizer = _regularizer(node, problems)
    if section is BAD or built is BAD or regularizer is BAD or any(value is BAD for value in section.values()):
        return BAD
    for split, rows in section.get("limit", {}).items():
        in_range(node.value["limit"].value[split], f"limit of {split!r}", rows, {"whole": True, "least": 1}, problems)
    counts = head is not None and isinstance(head.value, dict) and "num_labels" in head.value
    return TaskSection(head=built, regularizer=regularizer, counts_labels=counts, **section)


def _head(node: Node, problems: Problems) -> Any:
    from ...multitask.heads.base import heads

    return _named(node, "kind", heads(), problems, "head")


def _regularizer(node: Node, problems: Problems) -> Any:
    from ... import plugins

    named = node.value.get("regularizer")
    return None if named is None else _named(named, "name", plugins.regularizers(), problems, "regularizer")


def _early_stopping(root: Node, problems: Problems) -> Any:
    node = root.value.get("early_stopping")
    if node is None:
        return None
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "expected a mapping",
            got=node.kind,
            allowed="patience, threshold, metrics",
            try_="early_stopping: {patience: 3}",
        )
        return BAD
    values = _ranges_of(node, mapping_of(node, EarlyStoppingSection, problems), problems)
    return BAD if values is BAD or BAD in values.values() else EarlyStoppingSection(**values)


def _depths(root: Node, problems: Problems) -> Any:
    node = root.value.get("score_depths")
    values = () if node is None else value_of(node, tuple[int, ...], problems)
    if node is None or values is BAD:
        return values
    for child, value in zip(node.value, values, strict=True):
        in_range(child, "a depth", value, {"whole": True, "least": 0}, problems)
    return tuple(sorted(set(values)))


def _search(root: Node, problems: Problems) -> Any:
    node = root.value.get("search")
    if node is None or node.value is None:
        return None
    without = Node({key: child for key, child in root.items() if key != "search"}).to_yaml()
    return search(node, lambda changes: read_recipe(without, changes), problems)


def _method(root: Node, problems: Problems) -> Any:
    node = root.value.get("method")
    if node is None:
        _no_method(root, ", ".join(root.value), problems)
        return BAD
    parts = node.value if isinstance(node.value, list) else [node]
    if not parts:
        _no_method(node, "an empty list", problems)
    configs = [config for part in parts for config in _one_method(part, problems)]
    return tuple(configs)


def _no_method(node: Node, got: str, problems: Problems) -> None:
    from ... import plugins

    names = ", ".join(plugins.methods())
    problems.add(
        node, "key 'method' is missing", got=got, allowed=names, try_="method: pal   (hfadapt methods lists all)"
    )


def _one_method(node: Node, problems: Problems) -> Sequence[Any]:
    from ... import plugins
    from ...method.method import MethodPreset, expand

    if isinstance(node.value, str):
        node = Node({"method": node}, node.path, node.line)
    if not isinstance(node.value, dict) or "method" not in node.value:
        problems.add(
            node,
            "a method is a name, or a mapping with the key 'method'",
            got=node.kind,
            allowed=", ".join(plugins.methods()),
            try_="method: {method: lora, r: 8}",
        )
        return ()
    name = node.value["method"]
    registry = plugins.methods()
    if name.value not in registry:
        names = list(registry)
        near = did_you_mean(str(name.value), names)
        problems.add(
            name,
            f"no method {name.value!r}",
            got=name.kind,
            allowed=", ".join(names),
            try_=near or "hfadapt methods lists them",
        )
        return ()
    entry = registry[name.value]
    takes = entry.build if isinstance(entry, MethodPreset) else entry.config_class
    values = mapping_of(node, takes, problems, skip=("method",))
    if values is BAD or BAD in values.values():
        return ()
    try:
        return expand({"method": name.value, **values})
    except HFAdaptError as error:
        problems.add_error(node, error)
        return ()


def _mixing(root: Node, problems: Problems) -> Any:
    from ... import plugins

    node = root.value.get("mixing", Node({}, "mixing"))
    if isinstance(node.value, str):
        node = Node({"strategy": node}, node.path, node.line)
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "expected a mapping or the name of a strategy",
            got=node.kind,
            allowed=", ".join(plugins.mixing_strategies()),
            try_="mixing: {strategy: annealed, batch_size: 32}",
        )
        return BAD
    strategy = node.value.get("strategy", Node("annealed", "mixing.strategy", node.line))
    made = _named(strategy, "name", plugins.mixing_strategies(), problems, "mixing strategy")
    rest = _ranges_of(node, mapping_of(node, MixingSection, problems, skip=("strategy",)), problems)
    if made is BAD or BAD in rest.values():
        return BAD
    return MixingSection(strategy=made, **rest)


def _named(node: Node, key: str, registry: Any, problems: Problems, what: str) -> Any:
    """Make the object that ``node`` names, with the options beside the name."""
    if isinstance(node.value, str):
        node = Node({key: node}, node.path, node.line)
    if not isinstance(node.value, dict) or key not in node.value:
        problems.add(
            node,
            f"a {what} is a name, or a mapping with the key {key!r}",
            got=node.kind,
            allowed=", ".join(registry),
            try_=f"{{{key}: {next(iter(registry), '...')}}}",
        )
        return BAD
    name = node.value[key]
    if name.value not in registry:
        names = list(registry)
        hint = did_you_mean(str(name.value), names)
        problems.add(
            name, f"no {what} {name.value!r}", got=name.kind, allowed=", ".join(names), try_=hint or "one of these"
        )
        return BAD
    cls = registry[name.value]
    values = mapping_of(node, cls, problems, skip=(key,))
    if values is BAD or BAD in values.values():
        return BAD
    try:
        return cls(**values)
    except (HFAdaptError, TypeError, ValueError) as error:
        problems.add_error(node, error)
        return BAD
