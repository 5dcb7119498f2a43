"""hyperparameter_search: what the plan does not depend on is searched; what it does is refused before a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments, integrations, trainer
from transformers.trainer_utils import BestRun, HPSearchBackend

from hfadapt import MultiTaskModel, TaskMixture
from hfadapt.errors import ConfigError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A search over given trials, in place of optuna: the same calls of Trainer, without the package."""

    def run(trials):
        tasks = toy_tasks()
        mix = TaskMixture(tasks, tiny_tokenizer())

        def model_init(trial=None):
            torch.manual_seed(3)
            return MultiTaskModel.from_base(tiny_model("bert"), tasks, "low_rank")

        settings = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "report_to": [], "use_cpu": True}
        quiet = {"disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
        ours = Trainer(
            args=TrainingArguments(str(tmp_path / "run"), **settings, **quiet),
            model_init=model_init,
            train_dataset=mix.train,
            eval_dataset=mix.eval,
            data_collator=mix.collator,
            compute_metrics=mix.metrics,
            callbacks=mix.callbacks,
        )
        scores = []

        class Backend:
            name = "optuna"

            def __init__(self):
                pass

            def ensure_available(self):
                pass

            def default_hp_space(self, trial):
                return {}

            def run(self, trainer, n_trials, direction, **kwargs):
                for number, params in enumerate(trials):
                    trainer.objective = None
                    trainer.train(trial=SimpleNamespace(number=number, params=params, report=print, should_prune=bool))
                    scores.append(trainer.evaluate()["eval_loss"])
                return BestRun("0", min(scores), {})

        monkeypatch.setattr(integrations, "hp_params", lambda trial: trial.params)
        monkeypatch.setitem(trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Backend)
        ours.hyperparameter_search(
            hp_space=lambda trial: trial.params,
            compute_objective=lambda metrics: metrics["eval_loss"],
            n_trials=len(trials),
            backend="optuna",
        )
        return scores

    return run


def test_learning_rates_are_searched_and_each_trial_is_a_run_of_its_own(search):
    trials = [{"learning_rate": 1e-6}, {"learning_rate": 3e-2}]
    scores = search(trials)
    assert scores[1] < scores[0]
    assert scores == [score for trial in trials for score in search([trial])]


@pytest.mark.parametrize(
    "params", [{"per_device_train_batch_size": 8}, {"num_train_epochs": 3}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_what_the_plan_depends_on_is_refused_and_the_way_is_named(search, params):
    with pytest.raises(ConfigError, match=r"changed after the Trainer was made.*try: make a new Trainer"):
        search([{"learning_rate": 1e-6}, params])
