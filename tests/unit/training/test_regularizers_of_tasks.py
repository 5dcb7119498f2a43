"""Regularizers of a model of several tasks: for all of them, for some, and on the rows of one."""

from __future__ import annotations

import functools
import tempfile

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

import hfadapt
from hfadapt import plugins
from hfadapt.testing.toy import tiny_tokenizer, toy_model, toy_tasks
from tests.unit.training.test_regularizers import LARGE, NAMES, largest_difference, same


def toy_run(folder, tasks, batch, regularizer=None):
    set_seed(0)
    model = toy_model(tasks, "lora")
    trainer = toy_trainer(folder, model, tasks, batch)
    if regularizer is not None:
        hfadapt.regularize(trainer, regularizer)
    trainer.train()
    return {key: p.detach().clone() for key, p in model.named_parameters()}


@functools.cache
def toy_run_without(batch):
    with tempfile.TemporaryDirectory() as folder:
        return toy_run(folder, toy_tasks((16, 8, 8)), batch)


@pytest.mark.parametrize("batch", ["one_task", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_multi_task_models(tmp_path, name, batch):
    tasks = toy_tasks((16, 8, 8))
    run = functools.partial(toy_run, tmp_path, tasks, batch)
    one = plugins.regularizers()[name](**LARGE.get(name, {}))
    assert largest_difference(toy_run_without(batch), run(one)) > 1e-7
    if not one.repeats_updates:
        names = [task.name for task in tasks]
        assert all(p.isfinite().all() for p in run({names[0]: one, names[1]: "r3f"}).values())
        assert same(toy_run_without(batch), run({names[0]: None, names[1]: {"name": "smart", "weight": 0}}))


def toy_trainer(folder, model, tasks, batch):
    mix = hfadapt.TaskMixture(tasks, tiny_tokenizer(), batch=batch)
    args = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model=model, args=args, train_dataset=mix.train, data_collator=mix.collator, callbacks=mix.callbacks)


def test_only_the_rows_of_a_task_are_regularised(tmp_path):
    tasks = toy_tasks((16, 8, 8))
    trainer = toy_trainer(tmp_path, toy_model(tasks, "lora"), tasks, "mixed")
    seen = []

    class Spy(hfadapt.R3F):
        def loss(self, step):
            seen.append(step.inputs["task_ids"])
            return super().loss(step)

    hfadapt.regularize(trainer, {tasks[0].name: Spy()})
    trainer.train()
    assert seen and all(set(torch.as_tensor(ids).tolist()) == {0} for ids in seen)
