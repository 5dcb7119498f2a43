"""metric_for_best_model is checked when the Trainer is made, not at its first evaluation."""

from __future__ import annotations

import pytest

from hfadapt.errors import ConfigError

EVALUATES = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}


@pytest.mark.parametrize("name", ["topic_acuracy", "eval_topic_acuracy", "accuracy", "nothing", "topic"])
def test_a_name_that_no_evaluation_reports_is_refused_at_the_start(make_trainer, name):
    with pytest.raises(ConfigError, match=r"metric_for_best_model.*topic_accuracy"):
        make_trainer(metric_for_best_model=name, **EVALUATES)


def test_the_nearest_name_is_suggested(make_trainer):
    with pytest.raises(ConfigError, match="Did you mean 'topic_accuracy'"):
        make_trainer(metric_for_best_model="topic_acuracy", **EVALUATES)


@pytest.mark.parametrize("name", ["topic_accuracy", "eval_topic_accuracy", "macro", "eval_loss", "loss", "runtime"])
def test_names_that_are_reported_pass(make_trainer, name):
    make_trainer(metric_for_best_model=name, **EVALUATES)


def test_names_of_an_own_function_pass_once_they_are_told(make_trainer):
    trainer = make_trainer()
    ours = trainer.compute_metrics
    ours.other_names = ("kappa",)
    assert ours.reports("eval_kappa") and not ours.reports("eval_kapa")


def test_a_trainer_that_never_evaluates_may_name_anything(make_trainer):
    make_trainer(metric_for_best_model="nothing", eval_strategy="no")


def test_the_loss_of_a_named_data_set_passes(make_trainer):
    trainer = make_trainer()
    assert trainer.compute_metrics.reports("eval_dev_loss")
    assert trainer.compute_metrics.reports("eval_dev_topic_accuracy")
