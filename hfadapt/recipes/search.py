"""A search over values of a recipe: ``Trainer.hyperparameter_search`` with optuna, a trial at a time.

Each trial has a mixture, callbacks and a Trainer of its own, so that none knows of another; only the study does, a
file in the run's folder. A trial's values follow from the recipe's seed, the trial's number and the scores before it:
a search that was cut off goes on to the trials that it would have had.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError, did_you_mean
from .build import build_mixture, training_arguments
from .config import Recipe
from .config.place import place_in, recipe_with

if TYPE_CHECKING:
    from .config.recipe import SearchSection, Spread

    Run = Any  # recipes/run.py imports this file

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


def require_search(run: Run) -> None:
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


def _direction(run: Run, section: SearchSection) -> Literal["maximize", "minimize"]:
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


def run_search(run: Run, *, resume: bool = False) -> Found | None:
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
            _one_trial(run, section, study, storage, done)
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
            got=f"{len(record)} trials, all NaN",
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


def _one_trial(run: Run, section: SearchSection, study: Any, storage: Any, done: int) -> None:
    import optuna
    from transformers import Trainer, set_seed

    from ..training import regularize, task_optimizer
    from .arm import drop_printer, pack_frozen
    from .progress import ProgressLines

    def model_of(recipe: Recipe) -> Any:
        one = copy.copy(run)
        one.recipe = recipe
        model = one.build_model()
        pack_frozen(model)
        # Trainer seeds before it asks for the model; a run's Trainer seeds after its model was made
        set_seed(run.arguments.seed)
        return model

    def recipe_of(trial: Any) -> Recipe:
        if trial is None:
            return run.recipe
        # drawn here: transformers 5 makes the model before it asks for the space. A value is drawn once a trial
        drawn = {path: _suggest(trial, path, spread) for path, spread in section.space.items()}
        return recipe_with(run.recipe, drawn)

    class Searched(Trainer):
        """With optimizers of its own for each trial: a Trainer that searches is given none."""

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            recipe = recipe_of(self._trial)
            rates: Any = recipe.task_rates
            model: Any = self.model
            if self.optimizer is None and (recipe.head_learning_rate or any(rates.values())):
                self.optimizer = task_optimizer(model, self.args, head_learning_rate=recipe.head_learning_rate, **rates)
            return super().create_optimizer(*args, **kwargs)

    def space(trial: Any) -> dict[str, Any]:
        arguments = training_arguments(recipe_of(trial), Path(trainer.args.output_dir))
        fields = [path.removeprefix("training.") for path in section.space if path.startswith("training.")]
        values = {field: getattr(arguments, field) for field in fields}
        for field, value in values.items():
            # Trainer casts to the type of what stands there: 0.1 for warmup_steps would become 0
            setattr(trainer.args, field, value)
        return values

    def objective(metrics: dict[str, float]) -> float:
        score = float(metrics[f"eval_{section.metric}"])
        if math.isnan(score):
            raise optuna.TrialPruned("the score is no number")
        return score

    quiet = {
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "report_to": [],
        "metric_for_best_model": None,
    }
    mixture = build_mixture(run.recipe, run.tasks, run.tokenizer, epochs=run.epochs, cache=run.output / "tokens")
    title = f"trial {done + 1} of {section.trials}"
    trainer: Any = Searched(
        model_init=lambda trial=None: model_of(recipe_of(trial)),
        args=training_arguments(run.recipe, run.output / "checkpoints" / FOLDER, quiet),
        train_dataset=mixture.train,
        eval_dataset=mixture.eval,
        data_collator=mixture.collator,
        compute_metrics=mixture.metrics,
        callbacks=[*mixture.callbacks, ProgressLines(title)],
    )
    one = copy.copy(run)
    one._mixture = mixture
    for callback in one.callbacks_for(trainer.model):
        trainer.add_callback(callback)
    drop_printer(trainer)
    if run.recipe.regularizers:
        regularize(trainer, run.recipe.regularizers)
    try:
        trainer.hyperparameter_search(
            hp_space=space,
            compute_objective=objective,
            n_trials=1,
            direction=study.direction.name.lower(),
            backend="optuna",
            study_name=study.study_name,
            storage=storage,
            load_if_exists=True,
            # anew for each trial: it draws by the trials before it, wherever the run was cut off
            sampler=optuna.samplers.TPESampler(seed=(run.recipe.seed + done) % 2**32),
            pruner=optuna.pruners.NopPruner(),
        )
    except ValueError:
        # transformers then asks for the best of the study's trials, and none has a score yet
        if not _ended(study) or _score(_ended(study)[-1]) is not None:
            raise


def _suggest(trial: Any, path: str, spread: Spread) -> Any:
    if spread.kind == "choice":
        return trial.suggest_categorical(path, list(spread.values))
    low, high = spread.values
    log = spread.kind == "log"
    if spread.whole:
        return trial.suggest_int(path, low, high, log=log)
    return trial.suggest_float(path, float(low), float(high), log=log)


def _values(section: SearchSection, params: Any) -> dict[str, Any]:
    """A trial's values in the order of the recipe."""
    return {path: params[path] for path in section.space if path in params}


def _score(trial: Any) -> float | None:
    value = trial.value
    return None if value is None or trial.state.name != "COMPLETE" or not math.isfinite(value) else float(value)


def _tell(run: Run, section: SearchSection, trial: Any) -> None:
    score = _score(trial)
    said = "no number" if score is None else f"{score:.4f}"
    run.say(f"{_shown(_values(section, trial.params))}: {section.metric} {said}")


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{path}={value:.3g}" if isinstance(value, float) else f"{path}={value}" for path, value in values.items()
    )
