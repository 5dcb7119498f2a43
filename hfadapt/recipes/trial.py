"""One trial of a search: ``Trainer.hyperparameter_search`` with optuna, called for a single one.

Each has a mixture, callbacks and a Trainer of its own, so that none knows of another; only the study does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from transformers import Trainer, set_seed

from ..training import regularize, task_optimizer
from .arm import drop_printer, pack_frozen
from .build import training_arguments
from .config.searched import recipe_with
from .progress import ProgressLines

if TYPE_CHECKING:
    from .config import Recipe
    from .config.recipe import SearchSection, Spread
    from .running import Running

__all__ = ["run_trial"]

# Nothing is kept of a trial but its score.
_KEEPS_NOTHING = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": [],
    "metric_for_best_model": None,
}


class _Searched(Trainer):
    """Makes the model and the optimizer of each trial: a Trainer that searches is given neither.

    Args:
        run: The run of the trial, with a mixture of its own.
        section: What is searched.
        options: Of ``Trainer``.
    """

    def __init__(self, run: Running, section: SearchSection, **options: Any) -> None:
        self.run = run
        self.section = section
        super().__init__(model_init=self._model_of, **options)

    def recipe_of(self, trial: Any) -> Recipe:
        """The recipe with a trial's values, which are drawn once a trial, whoever asks first.

        That is the making of the model: transformers 5 asks for the space after it.
        """
        drawn = {path: _drawn(trial, path, spread) for path, spread in self.section.space.items()}
        return recipe_with(self.run.recipe, drawn)

    def space(self, trial: Any) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that are searched."""
        arguments = training_arguments(self.recipe_of(trial), Path(str(self.args.output_dir)))
        fields = [path.removeprefix("training.") for path in self.section.space if path.startswith("training.")]
        values = {field: getattr(arguments, field) for field in fields}
        for field, value in values.items():
            # Trainer casts to the type of what stands there: 0.1 for warmup_steps would become 0
            setattr(self.args, field, value)
        return values

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        recipe = self.recipe_of(self._trial)
        rates: Any = recipe.task_rates
        model: Any = self.model
        if self.optimizer is None and (recipe.head_learning_rate or any(rates.values())):
            self.optimizer = task_optimizer(model, self.args, head_learning_rate=recipe.head_learning_rate, **rates)
        return super().create_optimizer(*args, **kwargs)

    def _model_of(self, trial: Any = None) -> Any:
        run = self.run if trial is None else self.run.with_recipe(self.recipe_of(trial))
        model = run.build_model()
        if trial is not None:  # without one, while this Trainer is made
            for callback in self.run.callbacks_for(model):
                self.add_callback(callback)
        pack_frozen(model)
        # Trainer seeds before it asks for the model; a run's Trainer seeds after its model was made
        set_seed(run.arguments.seed)
        return model


def run_trial(run: Running, section: SearchSection, study: Any, storage: Any, number: int) -> None:
    """Draw values, train with them, and note the score in the study.

    Args:
        run: Its tasks, tokenizer and output folder are the trial's.
        section: What is searched, and by which result.
        study: Of optuna, with the trials before.
        storage: Of the study.
        number: How many trials ended before; with the recipe's seed it seeds the draw.
    """

    def objective(metrics: dict[str, float]) -> float:
        score = float(metrics[f"eval_{section.metric}"])
        if not math.isfinite(score):
            raise optuna.TrialPruned("the score is no number")
        return score

    of_trial = run.with_recipe(run.recipe)
    mixture = of_trial.mixture
    trainer = _Searched(
        of_trial,
        section,
        args=training_arguments(run.recipe, run.output / "checkpoints" / "search", _KEEPS_NOTHING),
        train_dataset=mixture.train,
        eval_dataset=mixture.eval,
        data_collator=mixture.collator,
        compute_metrics=mixture.metrics,
        callbacks=[*mixture.callbacks, ProgressLines(f"trial {number + 1} of {section.trials}")],
    )
    drop_printer(trainer)
    if run.recipe.regularizers:
        regularize(trainer, run.recipe.regularizers)
    try:
        trainer.hyperparameter_search(
            hp_space=trainer.space,
            compute_objective=objective,
            n_trials=1,
            direction=study.direction.name.lower(),
            backend="optuna",
            study_name=study.study_name,
            storage=storage,
            load_if_exists=True,
            # anew for each trial: it draws by the trials before it, wherever the run was cut off
            sampler=optuna.samplers.TPESampler(seed=(run.recipe.seed + number) % 2**32),
            pruner=optuna.pruners.NopPruner(),
        )
    except ValueError:
        # transformers then asks for the best of the study's trials, and none has a score yet
        last = study.trials[-1]
        if last.state.name != "PRUNED":
            raise


def _drawn(trial: Any, path: str, spread: Spread) -> Any:
    if spread.kind == "choice":
        return trial.suggest_categorical(path, list(spread.values))
    low, high = spread.values
    log = spread.kind == "log"
    if spread.whole:
        return trial.suggest_int(path, low, high, log=log)
    return trial.suggest_float(path, float(low), float(high), log=log)
