"""Where a value of a recipe stands, for what is found wrong with it only when tasks and model are known."""

from __future__ import annotations

from .recipe import Recipe
from .tree import Node, Problems, override, parse

__all__ = ["place_in"]


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
