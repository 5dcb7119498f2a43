"""The section ``search``: which values of the recipe are searched, and between which bounds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from ...errors import did_you_mean
from .check import BAD, in_range, mapping_of, value_of
from .recipe import SearchSection, Spread
from .search_reads import Probe, Reads
from .tree import Node, Problems

__all__ = ["search"]

_KINDS = ("choice", "log", "range")
# What one Trainer after another can take without another plan of the data, and without another set of rows.
_OF_TRAINING = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("warmup_steps", "lr_scheduler_type", "optim"),
)
_OF_TASKS = ("learning_rate", "weight_decay")
_SEARCHED = ("method", "head_learning_rate", *(f"training.{field}" for field in _OF_TRAINING))
# Reading a recipe takes some milliseconds; a range of more whole numbers is tried in steps.
_MOST_TRIED = 128


def search(node: Node, probe: Probe, problems: Problems) -> Any:
    """The checked section; ``BAD`` and notes where something is wrong with it.

    Args:
        node: The section.
        probe: Reads the recipe without the section, with assignments as the command line gives them.
        problems: What is wrong is noted here.
    """
    values = mapping_of(node, SearchSection, problems, skip=("space",))
    if values is BAD:
        return BAD
    if "trials" in values:
        range_ = {"whole": True, "least": 1}
        values["trials"] = in_range(node.value.get("trials", node), "trials", values["trials"], range_, problems)
    space = _space(node, probe, problems)
    if space is BAD or BAD in values.values():
        return BAD
    return SearchSection(space=space, **values)


def _space(section: Node, probe: Probe, problems: Problems) -> Any:
    node = section.value.get("space")
    if node is None or not isinstance(node.value, dict) or not node.value:
        problems.add(
            node or section,
            "'space' must say what is searched",
            got=node.kind if node and node.value != {} else "nothing",
            allowed="a mapping from the path of a value to {choice: [...]}, {log: [low, high]} or {range: [low, high]}",
            try_="space: {training.learning_rate: {log: [1e-5, 1e-3]}}",
        )
        return BAD
    drawn: dict[str, Any] = {}
    for path, child in node.items():
        place = Node(child.value, child.path, node.key_lines.get(path, child.line))
        drawn[path] = _drawn(path, place, problems) if _may_be_searched(path, place, node, problems) else BAD
    whole = {path: one for path, one in drawn.items() if one is not BAD}
    reads, firsts = Reads(probe), {path: one[2][0] for path, one in whole.items()}
    found = {
        path: _spread(path, child, kind, values, reads, firsts, problems)
        for path, (child, kind, values) in whole.items()
    }
    if len(found) < len(drawn) or BAD in found.values():
        return BAD
    return found if _fit_together(node, found, reads, firsts, problems) else BAD


def _may_be_searched(path: str, place: Node, space: Node, problems: Problems) -> bool:
    within = next((other for other in space.value if path.startswith(f"{other}.")), None)
    if within is not None:
        problems.add(
            place,
            f"{path!r} is a part of {within!r}, which is searched too",
            got=path,
            allowed="paths of which none holds another",
            try_=f"leave one of the two out: {within} or {path}",
        )
        return False
    task = path.startswith("tasks.") and path.rpartition(".")[2] in _OF_TASKS
    if path in _SEARCHED or path.startswith("method.") or task:
        return True
    names = [*_SEARCHED, "method.r"]
    last = path.rpartition(".")[2]
    near = next((name for name in names if name.rpartition(".")[2] == last), None)
    problems.add(
        place,
        f"{path!r} is nothing that can be searched",
        got=path,
        allowed=f"method, method.FIELD, head_learning_rate, tasks.NAME.learning_rate, tasks.NAME.weight_decay, "
        f"training.FIELD of {', '.join(_OF_TRAINING)}",
        try_=(f"Did you mean {near!r}?" if near else did_you_mean(path, names))
        or "what data, rows and steps depend on needs a run of its own: hfadapt compare shows several",
    )
    return False


def _drawn(path: str, node: Node, problems: Problems) -> Any:
    """How one path is searched: the node of its bounds or choices, the kind, and them."""
    if not isinstance(node.value, dict) or len(node.value) != 1 or next(iter(node.value)) not in _KINDS:
        got = node.kind if not isinstance(node.value, dict) else ", ".join(node.value) or "an empty mapping"
        wrong = next(iter(node.value), "") if isinstance(node.value, dict) and len(node.value) == 1 else ""
        problems.add(
            node,
            "a searched value says one way to draw it",
            got=got,
            allowed="{choice: [a, b, ...]}, {log: [low, high]} or {range: [low, high]}",
            try_=(did_you_mean(wrong, _KINDS) if wrong else None) or f"{path}: {{choice: [...]}}",
        )
        return BAD
    kind, child = next(iter(node.value.items()))
    values = _choices(child, problems) if kind == "choice" else _bounds(child, kind, problems)
    return BAD if values is BAD else (child, kind, values)


def _spread(
    path: str, node: Node, kind: Any, values: list[Any], reads: Reads, firsts: Mapping[str, Any], problems: Problems
) -> Any:
    """The checked spread of one path, each end and each choice of which the recipe takes."""
    refused = {
        (error.what, str(error.got or f"{path}={value}"), str(error.allowed or path), str(error.try_ or path))
        for value in values
        for error in reads.alone(path, value, firsts)
    }
    for what, got, allowed, try_ in sorted(refused):
        problems.add(node, what, got=got, allowed=allowed, try_=try_)
    if refused:
        return BAD
    whole = kind != "choice" and all(isinstance(value, int) for value in values)
    if whole:
        # [0, 1] are whole numbers of a rank and ends of a dropout: what lies between them says which
        between = values[0] + (values[1] - values[0]) / 2 + 0.25
        whole = bool(reads.alone(path, between, firsts))
    if whole and not _between_fit(node, kind, path, values, reads, firsts, problems):
        return BAD
    return Spread(kind, tuple(values), whole)


def _between_fit(
    node: Node, kind: str, path: str, bounds: list[int], reads: Reads, firsts: Mapping[str, Any], problems: Problems
) -> bool:
    """Try the whole numbers between the bounds: heads must divide a size, which no bound tells."""
    low, high = bounds
    between = range(low, high + 1, (high - low) // _MOST_TRIED + 1)
    notes = {value: reads.alone(path, value, firsts) for value in between}
    fitting = [value for value in between if not notes[value]]
    if len(fitting) == len(between):
        return True
    refused = next(value for value in between if notes[value])
    problems.add(
        node,
        f"the recipe does not take each number between the bounds: {notes[refused][0].what}",
        got=f"{path}={refused}",
        allowed=f"{kind} of numbers all of which may be drawn",
        try_=f"{path}: {{choice: [{', '.join(map(str, fitting[:8]))}]}}",
    )
    return False


def _bounds(node: Node, kind: str, problems: Problems) -> Any:
    example = {"log": "[1e-5, 1e-3]", "range": "[0.0, 0.2]"}[kind]
    if not isinstance(node.value, list) or len(node.value) != 2:
        got = f"{len(node.value)} values" if isinstance(node.value, list) else node.kind
        problems.add(node, f"{kind} takes two bounds", got=got, allowed="[low, high]", try_=f"{kind}: {example}")
        return BAD
    bounds = [_number(child, problems) for child in node.value]
    if BAD in bounds:
        return BAD
    low, high = bounds
    if low >= high:
        problems.add(
            node,
            "the bounds leave nothing between them",
            got=f"[{low}, {high}]",
            allowed="the lower bound first, and two that differ",
            try_=f"{kind}: [{high}, {low}]" if low > high else f"{low} as the recipe's own value",
        )
        return BAD
    if kind == "log" and low <= 0:
        problems.add(
            node,
            "numbers on a logarithmic scale are above 0",
            got=f"[{low}, {high}]",
            allowed="a lower bound above 0",
            try_=f"log: [{high / 1000:g}, {high:g}]" if high > 0 else "range",
        )
        return BAD
    return bounds


def _choices(node: Node, problems: Problems) -> Any:
    if not isinstance(node.value, list) or not node.value:
        problems.add(
            node,
            "choice lists the values to choose from",
            got=node.kind if node.value != [] else "an empty list",
            allowed="at least one value",
            try_="choice: [4, 8, 16]",
        )
        return BAD
    values = []
    for child in node.value:
        if isinstance(child.value, (dict, list)):
            problems.add(
                child, "a choice is one value", got=child.kind, allowed="numbers and words", try_="choice: [4, 8, 16]"
            )
            return BAD
        number = value_of(child, float, Problems("")) if isinstance(child.value, str) and child.plain else BAD
        values.append(child.word if number is BAD else number)
    if len({json.dumps(value) for value in values}) < len(values):
        problems.add(
            node,
            "a choice is named twice",
            got=", ".join(map(str, values)),
            allowed="each value once",
            try_=f"choice: [{', '.join(map(str, dict.fromkeys(values)))}]",
        )
        return BAD
    return values


def _number(node: Node, problems: Problems) -> Any:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    return value_of(node, float, problems)


def _fit_together(
    node: Node, space: Mapping[str, Spread], reads: Reads, firsts: Mapping[str, Any], problems: Problems
) -> bool:
    """Try each two values together, beside a first one of the others: a size and its heads are drawn apart."""
    pairs = (
        {one: a, other: b}
        for (one, first), (other, second) in itertools.combinations(space.items(), 2)
        for a, b in itertools.product(first.values, second.values)
    )
    for values in pairs:
        if refused := reads.together({**firsts, **values}):
            problems.add(
                node,
                "the recipe does not take these values together: " + "; ".join(refused),
                got=", ".join(f"{path}={value}" for path, value in values.items()),
                allowed="values of which each goes with each of the others",
                try_="leave out the one that does not go with the rest",
            )
            return False
    return True
