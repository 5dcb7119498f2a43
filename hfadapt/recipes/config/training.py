"""The sections whose keys are fields of ``transformers.TrainingArguments``: ``training`` and ``baselines``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...training.arguments import RANGES
from .check import BAD, fields_of, in_range, known_keys, value_of
from .recipe import BASELINES
from .tree import Node, Problems

__all__ = ["baselines", "training"]

HEAD_RATE = "head_learning_rate"
# Set by the recipe's own keys, so that a value has one place.
TAKEN = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "per_device_train_batch_size": "mixing.batch_size",
    "remove_unused_columns": "nothing: hfadapt's collator needs every column",
}


def baselines(root: Node, problems: Problems) -> Any:
    """Baseline to its own training fields; ``BAD`` when the section is none."""
    node = root.value.get("baselines")
    if node is None:
        return {}
    if isinstance(node.value, str):
        node = Node([node], node.path, node.line)
    if isinstance(node.value, list) and all(isinstance(item.value, str) for item in node.value):
        nothing = {item.value: Node({}, item.path, item.line) for item in node.value}
        node = Node(nothing, node.path, node.line, key_lines={item.value: item.line for item in node.value})
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "expected a list or a mapping of baselines",
            got=node.kind,
            allowed=", ".join(BASELINES),
            try_="baselines: [frozen_head]",
        )
        return BAD
    known_keys(node, BASELINES, problems, "baseline")
    own = {HEAD_RATE: float | None}
    return {name: training(child, problems, own) for name, child in node.items() if name in BASELINES}


def training(node: Node | None, problems: Problems, own: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The checked fields of a section; those that the recipe sets by its own keys are refused.

    Args:
        node: The section.
        problems: What is wrong with it is noted here.
        own: Keys beside the fields of ``TrainingArguments``, each with its type.
    """
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        problems.add(
            node,
            "expected a mapping of TrainingArguments fields",
            got=node.kind,
            allowed="fields of transformers.TrainingArguments",
            try_=f"{node.path}: {{learning_rate: 1e-4}}",
        )
        return BAD
    known = {**_training_fields(), **own}
    ranges = {**RANGES, HEAD_RATE: {"above": 0, "optional": True}}
    values = {}
    known_keys(node, known, problems, "TrainingArguments field")
    for key, child in node.items():
        if key in TAKEN:
            problems.add(
                child,
                f"{key} is set by the recipe's own key",
                got=child.kind,
                allowed="fields that no key of the recipe sets",
                try_=TAKEN[key],
            )
        elif key in known:
            values[key] = value_of(child, known[key], problems)
            if key in ranges:
                in_range(child, key, values[key], ranges[key], problems)
    return values


@functools.cache
def _training_fields() -> dict[str, Any]:
    from transformers import TrainingArguments

    return {name: hint for name, (hint, _) in fields_of(TrainingArguments).items()}
