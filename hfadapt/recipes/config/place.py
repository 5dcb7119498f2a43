"""Where a value of a recipe stands, for what is found wrong with it only when tasks and model are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .load import read_recipe
from .recipe import Recipe
from .search_reads import assignment
from .tree import Node, Problems, override, parse

__all__ = ["place_in", "recipe_with"]


def place_in(recipe: Recipe, *keys: str) -> str:
    """The place as errors of reading have it: ``line 3 (search.metric)``, or the command line's.

    Args:
        recipe: As it was read.
        keys: From the root down; a key that the recipe leaves out ends the way.
    """
    unread = Problems("recipe")
    node: Node = parse(recipe.source, unread)
    for change in recipe.overrides:
        override(node, change, unread)
    for key in keys:
        if not isinstance(node.value, dict) or key not in node.value:
            break
        node = node.value[key]
    return node.place if node.path else ".".join(keys)


def recipe_with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe without its search and with values in place of its own.

    Args:
        recipe: As it was read.
        values: Path to value.

    Raises:
        ConfigError: the recipe cannot take these values together.
    """
    root = parse(recipe.resolved, Problems("recipe"))
    root.value.pop("search", None)
    changes = [assignment(path, value) for path, value in values.items()]
    return read_recipe(root.to_yaml(), changes, source="the recipe with searched values")
