"""A search over values of a recipe: a study of trials, in a file in the run's folder, and the best of them.

A trial's values follow from the recipe's seed, the trial's number and the scores before it: a search that was cut off
goes on to the trials that it would have had.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError, did_you_mean
from .build import training_arguments
from .config import Recipe
from .config.place import place_in
from .config.searched import recipe_with

if TYPE_CHECKING:
    from .config.recipe import SearchSection
    from .running import Running

__all__ = ["FOLDER", "STUDY", "Found", "require_search", "run_search"]

FOLDER = "search"
STUDY = "study.db"
# Neither where a run writes, nor what is trained beside a trial, nor how many there are changes a trial.
_OF_NO_TRIAL = ("output", "source", "overrides", "resolved", "baselines", "score_split", "score_depths", "search")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        recipe: The one that is run: the best values in it, and no search.
        record: For ``results.json``: ``metric``, ``direction``, ``trials`` (``values`` and ``score`` of each; None
            where it was not a number), the number of the ``best`` trial and its ``values``.
        key: Of the study and the best of its trials, for what is kept of the training with these values.
    """

    recipe: Recipe
    record: dict[str, Any]
    key: str


def require_search(run: Running) -> None:
    """Ask for what the search of a run will need, before anything is trained.

    Raises:
        ConfigError: optuna is not installed, no evaluation reports the metric, the direction contradicts it, or
            ``TrainingArguments`` refuses an end of the space.
    """
    section = run.recipe.search
    if section is None:
        return
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "a search needs optuna, which is not installed",
            where=place_in(run.recipe, "search"),
            got="no package optuna",
            allowed="optuna 4 or newer",
            try_="pip install 'hfadapt[search]'",
        )
    _direction(run, section)
    for path, spread in section.space.items():
        for value in spread.values if path.startswith("training.") else ():
            training_arguments(recipe_with(run.recipe, {path: value}), run.output)


def _direction(run: Running, section: SearchSection) -> Literal["maximize", "minimize"]:
    from ..training import MultiTaskMetrics

    metrics = MultiTaskMetrics(run.tasks)
    if section.metric not in metrics.names:
        raise ConfigError(
            "no evaluation reports this result, by which trials would be compared",
            where=place_in(run.recipe, "search", "metric"),
            got=repr(section.metric),
            allowed=", ".join(metrics.names),
            try_=did_you_mean(section.metric.removeprefix("eval_"), metrics.names) or "metric: macro",
        )
    better = False if section.metric == "loss" else metrics.direction(section.metric)
    says = None if better is None else "maximize" if better else "minimize"
    if section.direction is not None and says is not None and section.direction != says:
        raise ConfigError(
            f"of this metric {'more' if better else 'less'} is better",
            where=place_in(run.recipe, "search", "direction"),
            got=f"metric: {section.metric}, direction: {section.direction}",
            allowed=f"direction: {says}, or none",
            try_="leave direction out: the metric says it",
        )
    return section.direction or says or "maximize"


def run_search(run: Running, *, resume: bool = False) -> Found | None:
    """Search, or go on with the search that was cut off; None without the section.

    Args:
        run: Its tasks, tokenizer and output folder are the trials'.
        resume: Take the trials that are in the study.

    Raises:
        ConfigError: no trial has a score that is a number.
    """
    section = run.recipe.search
    if section is None:
        return None
    import optuna

    from .trial import run_trial

    direction = _direction(run, section)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = run.output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        (folder / STUDY).unlink(missing_ok=True)
    name = _settings(run.recipe, section, direction)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STUDY).resolve()}")
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        if study.trials:
            _end_cut_off(study)
        while (done := len(_ended(study))) < section.trials:
            run_trial(run, section, study, storage, done)
            _tell(run, section, _ended(study)[-1])
        trials = _ended(study)[: section.trials]
    finally:
        storage.engine.dispose()
    record = [{"values": _values(section, trial.params), "score": _score(trial)} for trial in trials]
    scored = [number for number, trial in enumerate(record) if trial["score"] is not None]
    if not scored:
        raise ConfigError(
            "no trial of the search has a score that is a number",
            where=place_in(run.recipe, "search", "space"),
            got=f"{len(record)} trials, all NaN or infinite",
            allowed="a space in which training does not diverge",
            try_="lower bounds of the learning rate",
        )
    choose = max if direction == "maximize" else min
    best = choose(scored, key=lambda number: record[number]["score"])
    values = record[best]["values"]
    run.say(f"Best of {len(record)} trials: {_shown(values)}")
    found = recipe_with(run.recipe, values)
    found = dataclasses.replace(found, source=run.recipe.source, overrides=run.recipe.overrides)
    said = {"metric": section.metric, "direction": direction, "trials": record, "best": best, "values": values}
    return Found(found, said, f"{name}-{best}")


def _settings(recipe: Recipe, section: SearchSection, direction: str) -> str:
    """A name that tells the studies of an edited recipe apart; more trials are more of the same study."""
    fields = [field.name for field in dataclasses.fields(recipe) if field.name not in _OF_NO_TRIAL]
    facts = {name: getattr(recipe, name) for name in fields}
    said = repr((facts, recipe.regularizers, section.metric, direction, dict(section.space)))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _ended(study: Any) -> list[Any]:
    """Trials that ran to their end, in their order; those whose score was no number count as pruned."""
    from optuna.trial import TrialState

    return [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def _end_cut_off(study: Any) -> None:
    """A trial during which the run was cut off is trained again, as one of another number."""
    from optuna.trial import TrialState

    for trial in study.trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)


def _values(section: SearchSection, params: Any) -> dict[str, Any]:
    """A trial's values in the order of the recipe."""
    return {path: params[path] for path in section.space if path in params}


def _score(trial: Any) -> float | None:
    return float(trial.value) if trial.state.name == "COMPLETE" else None


def _tell(run: Running, section: SearchSection, trial: Any) -> None:
    score = _score(trial)
    said = "no number" if score is None else f"{score:.4f}"
    run.say(f"{_shown(_values(section, trial.params))}: {section.metric} {said}")


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}" for path, value in values.items()
    )
