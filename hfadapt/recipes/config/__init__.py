"""Recipes: YAML, checked strictly, with overrides from the command line."""

from hfadapt.recipes.config.load import load_recipe, read_recipe
from hfadapt.recipes.config.recipe import BASELINES, Baseline, MixingSection, Recipe, TaskSection

__all__ = ["BASELINES", "Baseline", "MixingSection", "Recipe", "TaskSection", "load_recipe", "read_recipe"]
