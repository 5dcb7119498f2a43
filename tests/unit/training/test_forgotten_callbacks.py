"""A Trainer that was not given the mixture's callbacks would shuffle the plan away: the mixture notices and raises."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hfadapt import TaskMixture
from hfadapt.data import Layout
from hfadapt.errors import DataError
from hfadapt.testing.toy import tiny_tokenizer, toy_model, toy_tasks


def trainer(mix, folder, callbacks=(), **options):
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=3, save_strategy="no", disable_tqdm=True, **options
    )
    return Trainer(
        toy_model(list(mix.tasks)),
        arguments,
        mix.collator,
        mix.train,
        compute_metrics=mix.metrics,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("options", [{}, {"train_sampling_strategy": "sequential"}], ids=["random", "sequential"])
def test_training_without_the_callbacks_is_refused_before_the_first_step(tmp_path, options):
    mix = TaskMixture(toy_tasks(), tiny_tokenizer())
    one = trainer(mix, tmp_path, **options)
    with pytest.raises(DataError, match=r"does not know how they are trained.*callbacks=mix.callbacks"):
        one.train()
    assert one.state.global_step == 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_shuffled_plan_is_noticed_also_where_the_mixture_is_planned(tmp_path, batch_size):
    mix = TaskMixture(toy_tasks(), tiny_tokenizer(), batch_size=batch_size)
    with pytest.raises(DataError, match="does not keep the mixture's order"):
        for _ in DataLoader(mix.train, batch_size=batch_size, shuffle=True, collate_fn=mix.collator):
            pass


def test_a_second_trainer_without_the_callbacks_is_noticed(tmp_path):
    mix = TaskMixture(toy_tasks(), tiny_tokenizer())
    trainer(mix, tmp_path, mix.callbacks).train()
    with pytest.raises(DataError, match="does not keep the mixture's order"):
        trainer(mix, tmp_path).train()


def test_loops_of_ones_own_and_single_rows_are_served():
    mix = TaskMixture(toy_tasks(), tiny_tokenizer(), batch_size=4)
    for epoch in range(2):
        mix.train.set_epoch(epoch)
        batches = list(DataLoader(mix.train, batch_size=4, collate_fn=mix.collator))
        assert len(batches) == mix.schedule.steps
    assert len(list(DataLoader(mix.train, batch_size=7, collate_fn=mix.collator))) > 0
    loose = TaskMixture(toy_tasks(), tiny_tokenizer())
    assert loose.train[5]["input_ids"] is not None
    loose.plan(Layout(4))
    assert len(next(iter(DataLoader(loose.train, batch_size=4, collate_fn=loose.collator)))["task_ids"]) == 4
