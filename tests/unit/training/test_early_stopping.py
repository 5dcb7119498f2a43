"""Tasks that have converged stop, each alone; the others get their share, and a resumed run agrees."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import hfadapt
from hfadapt.data import Layout, Schedule
from hfadapt.errors import ConfigError, TaskError
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks
from hfadapt.training.early_stopping import STOPPED

EVERY = {"eval_strategy": "epoch", "num_train_epochs": 6, "learning_rate": 1e-3}


class Scores(TrainerCallback):
    """Puts scores of a plot of its own in place of the real ones, as they are logged."""

    def __init__(self, by_task, every):
        self.by_task = by_task
        self.every = every

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        line = state.log_history[-1]
        for key, scores in self.by_task.items():
            line[key] = metrics[key] = scores[min(state.global_step // self.every, len(scores)) - 1]


class Moved(TrainerCallback):
    """The parameters of each task at the end of every epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def of_task(parameters, task):
    found = {n: p for n, p in parameters.items() if f".{task}." in f".{n}."}
    assert found
    return found


def keys_of(tasks):
    return [f"eval_{task.name}_{task.metrics[0]}" for task in tasks]


def build(make_trainer, scores, folder="run", *, patience=2, mixture=None, watch=(), **options):
    """A run of 6 steps an epoch whose tasks have these scores; the callback needs the mixture of its Trainer."""
    tasks = toy_tasks()
    mixture = {"strategy": "round_robin", "epoch_steps": 6, **(mixture or {})}
    plot = Scores(dict(zip(keys_of(tasks), scores, strict=False)), options.get("eval_steps", 6))
    trainer = make_trainer(folder, tasks=tasks, mixture=mixture, callbacks=[plot, *watch], **{**EVERY, **options})
    sync = next(one for one in trainer.callback_handler.callbacks if isinstance(one, hfadapt.EpochSync))
    stopping = hfadapt.TaskEarlyStopping(sync.mixture, patience)
    trainer.add_callback(stopping)
    return trainer, stopping


def drawn(mixture, epoch):
    return mixture.schedule.counts(epoch).tolist()


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
FLAT = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("batch", ["one_task", "mixed"])
def test_a_stopped_task_stands_still_and_the_others_share_its_steps(make_trainer, caplog, batch):
    watch = Moved()
    names = [task.name for task in toy_tasks()]
    scores = [FLAT, *[RISING] * (len(names) - 1)]
    trainer, stopping = build(make_trainer, scores, mixture={"batch": batch}, watch=[watch], weight_decay=0.1)
    with caplog.at_level(logging.WARNING, "hfadapt"):
        trainer.train()
    # the first score is the best, and two that are no better end it: three epochs
    assert {name: (stop.step, stop.best_step) for name, stop in stopping.stopped.items()} == {names[0]: (18, 6)}
    assert f"task {names[0]!r} stops at step 18" in caplog.text
    (line,) = [line for line in trainer.state.log_history if STOPPED in line]
    assert (line[STOPPED], line["step"], line["best"], line["patience"]) == (names[0], 18, 0.5, 2)
    before, after = watch.seen[2], watch.seen[5]
    assert all(torch.equal(p, of_task(after, names[0])[n]) for n, p in of_task(before, names[0]).items())
    for name in names[1:]:
        assert any(not torch.equal(p, of_task(after, name)[n]) for n, p in of_task(before, name).items())
    rows = stopping.mixture.schedule.rows
    assert drawn(stopping.mixture, 2)[0] > 0 and sum(drawn(stopping.mixture, 2)) == rows
    assert drawn(stopping.mixture, 3)[0] == 0 and sum(drawn(stopping.mixture, 3)) == rows


def test_a_resumed_run_goes_on_as_an_uninterrupted_one(make_trainer, trained):
    names = [task.name for task in toy_tasks()]
    scores = [FLAT, *[RISING] * (len(names) - 1)]
    whole, _ = build(make_trainer, scores, "whole", save_strategy="epoch")
    whole.train()
    folder = whole.args.output_dir
    # stopped before it, at it and after it
    for step in (12, 18, 24):
        again, stopping = build(make_trainer, scores, "whole", save_strategy="epoch")
        again.train(resume_from_checkpoint=f"{folder}/checkpoint-{step}")
        assert {name: stop.step for name, stop in stopping.stopped.items()} == {names[0]: 18}
        left, right = trained(again.model), trained(whole.model)
        assert all(torch.equal(left[name], right[name]) for name in left), step
        assert sum(STOPPED in line for line in again.state.log_history) == 1


def test_the_run_ends_with_its_last_task(make_trainer):
    count = len(toy_tasks())
    trainer, stopping = build(make_trainer, [FLAT] * count)
    trainer.train()
    assert trainer.state.global_step == 18 and len(stopping.stopped) == count


def test_a_new_run_of_the_same_mixture_starts_with_all_tasks(make_trainer):
    names = [task.name for task in toy_tasks()]
    trainer, stopping = build(make_trainer, [FLAT, *[RISING] * (len(names) - 1)], num_train_epochs=4)
    trainer.train()
    assert drawn(stopping.mixture, 3)[0] == 0
    trainer.state.log_history.clear()
    stopping.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert drawn(stopping.mixture, 3)[0] > 0


def test_an_evaluation_within_an_epoch_stops_a_task_from_the_next_epoch_on(make_trainer):
    names = [task.name for task in toy_tasks()]
    trainer, stopping = build(
        make_trainer, [FLAT, *[RISING] * (len(names) - 1)], eval_strategy="steps", eval_steps=4, max_steps=24
    )
    trainer.train()
    # scores at steps 4, 8 and 12 are alike, so it stops at 12, where the third epoch begins
    assert stopping.stopped[names[0]].step == 12
    assert drawn(stopping.mixture, 1)[0] > 0 and drawn(stopping.mixture, 2)[0] == 0


def test_losses_stop_by_falling_no_more_and_nan_is_no_progress(make_trainer):
    _, stopping = build(make_trainer, [RISING])
    key = stopping.watched[next(iter(stopping.watched))][0]
    name = next(iter(stopping.watched))
    stopping.watched = {name: (key, False)}
    lines = [{key: score, "step": step} for step, score in enumerate((3.0, 2.0, 2.0, float("nan")))]
    assert stopping._follow(lines) == {name: (3, 2.0, 1)}
    assert not stopping._follow([{key: 3.0 - step, "step": step} for step in range(9)])
    stopping.threshold = 2.0
    assert stopping._follow([{key: 3.0 - step, "step": step} for step in range(9)])[name].step == 2


@pytest.mark.parametrize("strategy", [hfadapt.RoundRobin(), hfadapt.Annealed(), hfadapt.Proportional()])
@pytest.mark.parametrize("form", ["one_task", "mixed"])
def test_shares_stay_in_proportion_among_the_others(form, strategy):
    sizes = (600, 300, 100)
    plan = Schedule(sizes, strategy, form, Layout(2, 1, 1, 4), epoch_steps=3000)
    stopped = Schedule(sizes, strategy, form, Layout(2, 1, 1, 4), epoch_steps=3000, stops=(2, -1, -1))
    for epoch in (0, 1):
        np.testing.assert_array_equal(stopped.draws(epoch), plan.draws(epoch))
    full, left = plan.probabilities(2), stopped.probabilities(2)
    assert left[0] == 0
    np.testing.assert_allclose(left[1:], full[1:] / full[1:].sum())
    np.testing.assert_allclose(stopped.counts(2) / stopped.rows, left, atol=0.04)
    if isinstance(strategy, hfadapt.RoundRobin):
        assert (np.diff(stopped.draws(2)) != 0).all(), "the others still go in turn"


def test_what_cannot_stop_is_refused(make_trainer):
    tasks = toy_tasks()
    mix = hfadapt.TaskMixture(tasks, tiny_tokenizer())
    name = tasks[0].name
    with pytest.raises(ConfigError, match="patience"):
        hfadapt.TaskEarlyStopping(mix, 0)
    with pytest.raises(ConfigError, match="threshold"):
        hfadapt.TaskEarlyStopping(mix, threshold=-1)
    with pytest.raises(TaskError, match="no task 'nope'"):
        hfadapt.TaskEarlyStopping(mix, metrics={"nope": "f1"})
    with pytest.raises(TaskError, match="not scored by that metric.*'perplexity'"):
        hfadapt.TaskEarlyStopping(mix, metrics={name: "perplexity"})
    assert name not in hfadapt.TaskEarlyStopping(mix, metrics={name: None}).watched
    with pytest.raises(ConfigError, match="never evaluates.*try: TrainingArguments"):
        make_trainer(callbacks=[hfadapt.TaskEarlyStopping(mix)])
    trainer, _ = build(make_trainer, [])
    trainer.compute_metrics = None
    with pytest.raises(ConfigError, match="gave no score of a task that stops by it"):
        trainer.train()
