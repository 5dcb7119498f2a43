"""Arms that have ended, each in a file of its own: a run that is cut off trains none of them again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters.atomic import write_json
from ..errors.full_disk import writing
from .config import Recipe
from .results import FORMAT_VERSION, ArmResult

__all__ = ["EndedArms"]

# Neither where a run writes nor what stands beside an arm changes the arm.
_OF_NO_ARM = ("output", "source", "overrides", "resolved", "baselines", "regularizer", "search", "score_depths")


class EndedArms:
    """The results in ``arms/`` of an output folder.

    An arm is found again only under the settings that it was trained with: an edited recipe trains it anew.

    Args:
        recipe: The run's.
        output: The run's output folder.
        resume: Whether to look for arms of an earlier start at all.
    """

    def __init__(self, recipe: Recipe, output: Path, *, resume: bool) -> None:
        settings = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in _OF_NO_ARM}
        if recipe.regularizers is not None:  # a key of its own, so that arms of before there were any are found
            settings["regularizers"] = recipe.regularizers
        if recipe.score_depths:
            settings["score_depths"] = recipe.score_depths
        self._settings = repr(settings)
        self._folder = output / "arms"
        self._resume = resume

    def find(self, key: str, changes: Mapping[str, Any] | None = None) -> tuple[ArmResult, dict[str, Any]] | None:
        """The result that was kept for an arm, with what was kept beside it; None where the arm is still to be trained.

        Args:
            key: Of the arm, or of the part of it that is one task's own model.
            changes: What a baseline sets for itself.
        """
        path = self._folder / f"{key}.json"
        if not self._resume or not path.is_file():
            return None
        found = json.loads(path.read_text("utf-8"))
        if found["settings"] != self._digest(changes):
            return None
        return ArmResult.from_dict(found["result"]), found["beside"]

    def keep(self, key: str, result: ArmResult, changes: Mapping[str, Any] | None = None, **beside: Any) -> ArmResult:
        """Write an arm's result, whole or not at all, and return it."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{key}.json"
        write_json(path, {"settings": self._digest(changes), "result": dataclasses.asdict(result), "beside": beside})
        return result

    def _digest(self, changes: Mapping[str, Any] | None) -> str:
        facts = f"{FORMAT_VERSION} {self._settings} {sorted((changes or {}).items())}"
        return hashlib.sha256(facts.encode()).hexdigest()
