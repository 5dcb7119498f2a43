"""A recipe with values of its search in place of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .load import read_recipe
from .recipe import Recipe
from .search_reads import assignment
from .tree import Problems, parse

__all__ = ["recipe_with"]


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
