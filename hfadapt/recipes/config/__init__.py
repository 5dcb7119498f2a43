"""Recipes: YAML, checked strictly, with overrides from the command line."""

from .load import load_recipe, read_recipe
from .recipe import BASELINES, Baseline, MixingSection, Recipe, TaskSection

__all__ = ["BASELINES", "Baseline", "MixingSection", "Recipe", "TaskSection", "load_recipe", "read_recipe"]
