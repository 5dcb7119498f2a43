"""A plain Trainer on several tasks: order, resuming, best model, accumulation, idle tasks, dropped depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

import hfadapt
from hfadapt import Classification, MultiTaskModel, OwnHead, RobustAdapterDrop, Task, TaskMixture
from hfadapt.errors import ConfigError, DataError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_rows, toy_tasks
from hfadapt.training import last_checkpoint


class Watch(TrainerCallback):
    """Records what each optimizer step saw."""

    def __init__(self):
        self.tasks, self.drop, self.batch = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.hook = kwargs["model"].register_forward_pre_hook(self._forward, with_kwargs=True)

    def _forward(self, module, args, kwargs):
        if module.training:
            self.batch.append(kwargs["task_ids"].tolist())
            self.drop.append(dict(hfadapt.attachment(module).drop))

    def on_step_end(self, args, state, control, **kwargs):
        self.tasks.append([task for batch in self.batch for task in batch])
        self.batch = []

    def on_train_end(self, args, state, control, **kwargs):
        self.hook.remove()


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)


def test_each_step_holds_one_task_also_over_accumulated_batches(make_trainer):
    watch = Watch()
    trainer = make_trainer(gradient_accumulation_steps=2, callbacks=[watch])
    trainer.train()
    assert all(len(set(tasks)) == 1 and len(tasks) == 8 for tasks in watch.tasks)
    planned = [task for epoch in range(2) for task in trainer.train_dataset.schedule.draws(epoch)]
    assert [tasks[0] for tasks in watch.tasks] == planned


def test_annealing_follows_the_epochs_of_the_arguments(make_trainer):
    trainer = make_trainer(num_train_epochs=5)
    assert trainer.train_dataset.schedule.layout.epochs == 5
    steps = trainer.train_dataset.schedule.steps
    assert make_trainer(max_steps=3 * steps + 1).train_dataset.schedule.layout.epochs == 4


def test_mixed_batches_train(make_trainer):
    watch = Watch()
    make_trainer(mixture={"batch": "mixed", "strategy": "round_robin"}, callbacks=[watch]).train()
    assert watch.tasks[0] == [0, 1, 2, 0]


RESUME = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "warmup_steps": 3,
    "num_train_epochs": 3,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.mark.parametrize("batch", ["one_task", "mixed"])
def test_a_run_cut_off_at_any_step_resumes_to_the_same_numbers(make_trainer, trained, tmp_path, batch):
    mixture = {"batch": batch, "epoch_steps": 2, "bucket_steps": 2}
    whole = make_trainer("whole", mixture=mixture, callbacks=[RobustAdapterDrop()], **RESUME)
    whole.train()
    want, log = trained(whole.model), whole.evaluate()
    assert whole.state.global_step == 6
    # after the first step, in the middle and at the end of each epoch, after the last
    for step in range(1, 7):
        again = make_trainer("again", mixture=mixture, callbacks=[RobustAdapterDrop()], **RESUME)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        equal(trained(again.model), want)
        found = again.evaluate()
        assert {k: v for k, v in found.items() if "macro" in k} == {k: v for k, v in log.items() if "macro" in k}


@pytest.mark.parametrize("state", [None, '{"epoch": 1.0, "glo'], ids=["no state", "half a state"])
def test_a_run_killed_while_it_wrote_a_checkpoint_resumes_from_the_one_before(
    make_trainer, trained, tmp_path, caplog, state
):
    args = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer("run", **args)
    assert last_checkpoint(tmp_path / "run") is None
    whole.train()
    # Trainer writes the state last, so this is what a run leaves that is killed before or while it does
    half = tmp_path / "run" / "checkpoint-3" / "trainer_state.json"
    half.unlink() if state is None else half.write_text(state)
    found = last_checkpoint(tmp_path / "run")
    assert found == str(tmp_path / "run" / "checkpoint-2") and "checkpoint-3" in caplog.text
    again = make_trainer("run", **args)
    again.train(resume_from_checkpoint=found)
    equal(trained(again.model), trained(whole.model))


def test_a_run_interrupted_by_an_error_resumes_to_the_same_numbers(make_trainer, trained, tmp_path):
    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    whole = make_trainer("whole")
    whole.train()
    cut = make_trainer("cut", callbacks=[Cut()], save_strategy="steps", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = make_trainer("cut", save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    equal(trained(again.model), trained(whole.model))


def test_best_model_is_loaded_at_the_end(make_trainer, trained):
    trainer = make_trainer(
        num_train_epochs=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="macro",
    )
    trainer.train()
    scores = [entry["eval_macro"] for entry in trainer.state.log_history if "eval_macro" in entry]
    assert trainer.evaluate()["eval_macro"] == pytest.approx(max(scores), abs=0)


def test_metrics_are_those_of_the_whole_corpus(make_trainer):
    trainer = make_trainer(per_device_eval_batch_size=3)
    found = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 24
    whole = trainer.evaluate()
    for name in ("eval_topic_accuracy", "eval_score_pearson", "eval_same_accuracy", "eval_macro"):
        assert found[name] == pytest.approx(whole[name], abs=1e-6)
    assert found["eval_macro"] == pytest.approx(
        np.mean([found["eval_topic_accuracy"], found["eval_score_pearson"], found["eval_same_accuracy"]])
    )


def test_accumulated_small_batches_equal_one_large_batch(make_trainer, trained):
    # equal lengths, or padding would change nothing but the sums' rounding
    tasks = [Task("t", Classification(2, dropout=0.0), data=toy_rows("class", 32, words=(5, 5)))]
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(11)
        base = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = hfadapt.MultiTaskModel.from_base(base, tasks, "low_rank")
        trainer = make_trainer(
            tasks=tasks,
            model=model,
            mixture={"bucket_steps": 1},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
        )
        trainer.train()
        results.append(trained(model))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_of_every_task(make_trainer):
    trainer = make_trainer(
        num_train_epochs=10,
        per_device_train_batch_size=8,
        tasks=toy_tasks((16, 16, 16)),
        train_base=True,
        learning_rate=3e-3,
        mixture={"strategy": "round_robin"},
    )
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    by_task = [[row for row in rows if row["task_ids"] == task] for task in range(3)]
    before = [trainer.evaluate(data)["eval_loss"] for data in by_task]
    trainer.train()
    after = [trainer.evaluate(data)["eval_loss"] for data in by_task]
    assert all(late < 0.7 * early for late, early in zip(after, before, strict=True))


@pytest.mark.parametrize("everyone", [False, True], ids=["eager", "all tasks take part"])
def test_a_task_without_a_row_does_not_move_under_momentum_and_decay(make_trainer, trained, monkeypatch, everyone):
    class Compare(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.before = trained(kwargs["model"])

        def on_step_end(self, args, state, control, **kwargs):
            moved = {n for n, p in trained(kwargs["model"]).items() if not torch.equal(p, self.before[n])}
            name = ("topic", "score", "same")[schedule.draws(0)[state.global_step - 1]]
            assert moved and all(f".{name}." in n for n in moved)

    trainer = make_trainer(callbacks=[Compare()], mixture={"strategy": "round_robin"}, num_train_epochs=1)
    schedule = trainer.train_dataset.schedule
    if everyone:
        for module in ("hfadapt.routing", "hfadapt.routing.task_ids", "hfadapt_plugins.methods.shared.rows"):
            monkeypatch.setattr(f"{module}.all_tasks_take_part", lambda: True)
    trainer.train()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_trains_to_the_same_weights(make_trainer, trained, reentrant):
    plain = make_trainer(max_steps=4)
    plain.train()
    checkpointed = make_trainer(
        max_steps=4, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    checkpointed.train()
    want = trained(plain.model)
    for name, got in trained(checkpointed.model).items():
        torch.testing.assert_close(got, want[name], rtol=1e-4, atol=1e-5)


def test_low_precision_autocast_trains(make_trainer):
    trainer = make_trainer(max_steps=4, bf16=True)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_robust_drop_draws_the_closed_range_and_agrees_in_a_step(make_trainer):
    watch = Watch()
    trainer = make_trainer(
        callbacks=[RobustAdapterDrop(), watch], gradient_accumulation_steps=2, mixture={"epoch_steps": 20}
    )
    trainer.train()
    path = hfadapt.attachment(trainer.model).arch.stacks[0].path
    depths = [drop.get(path, 0) for drop in watch.drop]
    assert set(depths) == {0, 1}
    assert depths[0::2] == depths[1::2]
    assert hfadapt.attachment(trainer.model).drop.get(path, 0) == 0


def test_robust_drop_covers_zero_to_l_minus_one_evenly():
    drop = RobustAdapterDrop()
    drop._limits = {"encoder.layer": 11}
    counts = np.bincount([drop.draw(0, step)["encoder.layer"] for step in range(6000)], minlength=12)
    assert len(counts) == 12 and counts.min() > 400 and counts.max() < 600


def test_evaluation_during_training_uses_the_requested_depth(make_trainer):
    seen = []
    trainer = make_trainer(
        callbacks=[RobustAdapterDrop()], eval_strategy="steps", eval_steps=1, max_steps=4, eval_on_start=True
    )
    hfadapt.set_adapter_drop(trainer.model, 1)

    def look(module, args, kwargs):
        if not module.training:
            seen.append(dict(hfadapt.attachment(module).drop))

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    assert {tuple(drop.values()) for drop in seen} == {(1,)}


@pytest.mark.parametrize(("options", "match"), [({"max": 3}, "cannot drop"), ({"stacks": ["decoder"]}, "no stack")])
def test_robust_drop_refuses_what_the_model_does_not_have(make_trainer, options, match):
    with pytest.raises(ConfigError, match=match):
        make_trainer(callbacks=[RobustAdapterDrop(**options)])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "undo the mixture's order"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"label_smoothing_factor": 0.1}, "label smoothing"),
    ],
)
def test_arguments_that_would_break_the_run_are_refused_before_training(make_trainer, args, match):
    with pytest.raises(ConfigError, match=match):
        make_trainer(**args)


def test_batch_size_is_the_trainers_and_a_contradiction_is_refused(make_trainer):
    assert make_trainer(mixture={"batch_size": 4}).train_dataset.schedule.layout.batch_size == 4
    with pytest.raises(ConfigError, match="disagree about the batch size"):
        make_trainer(mixture={"batch_size": 16})


def test_arguments_changed_after_the_trainer_was_made_are_refused(make_trainer):
    trainer = make_trainer()
    trainer.args.num_train_epochs = 7
    with pytest.raises(ConfigError, match="changed after"):
        trainer.train()


def test_without_a_tokenizer_anywhere_the_error_says_where_to_give_one(make_trainer):
    from transformers import Trainer

    trainer = make_trainer()
    mix = TaskMixture(toy_tasks())
    with pytest.raises(DataError, match="no tokenizer is known"):
        Trainer(model=trainer.model, args=trainer.args, train_dataset=mix.train, callbacks=mix.callbacks)
    Trainer(
        model=trainer.model,
        args=trainer.args,
        train_dataset=mix.train,
        data_collator=mix.collator,
        processing_class=tiny_tokenizer(),
        callbacks=mix.callbacks,
    )
    assert mix.collator.tokenizer is not None


def test_one_task_on_a_stock_model_with_adapters_trains_through_the_same_mixture(make_trainer):
    model = tiny_model("bert", "sequence-classification", num_labels=2)
    hfadapt.attach(model, "low_rank", "topic")
    trainer = make_trainer(tasks=toy_tasks()[:1], model=model)
    trainer.compute_metrics = None
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_stock_model_with_adapters_resumes_from_trainers_checkpoint_to_the_same_numbers(
    make_trainer, trained, tmp_path
):
    def build(folder):
        model = tiny_model("bert", "sequence-classification", num_labels=2)
        hfadapt.attach(model, "lora", "topic")
        trainer = make_trainer(folder, tasks=toy_tasks()[:1], model=model, save_strategy="steps", save_steps=2)
        trainer.compute_metrics = None
        return trainer

    whole = build("whole")
    whole.train()
    again = build("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.state.global_step == whole.state.global_step > 2
    equal(trained(again.model), trained(whole.model))


def test_full_fine_tuning_and_frozen_base_train_what_they_should(make_trainer):
    for train_base in (True, False):
        trainer = make_trainer(method=None, train_base=train_base, max_steps=2)
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        moved = {n.split(".")[0] for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
        assert moved == ({"base", "heads"} if train_base else {"heads"})


def test_a_mixture_of_other_tasks_than_the_models_is_refused(make_trainer):
    model = make_trainer(tasks=toy_tasks()).model
    with pytest.raises(ConfigError, match=r"same tasks in the same order[\s\S]*same, score, topic"):
        make_trainer(tasks=toy_tasks()[::-1], model=model)


def test_labels_outside_the_bases_own_head_are_refused(make_trainer):
    tasks = [Task("own", OwnHead(), data=[{"text": "w1", "label": 0}, {"text": "w2", "label": 3}])]
    model = MultiTaskModel.from_base(tiny_model("bert", "sequence-classification", num_labels=3), tasks, "low_rank")
    with pytest.raises(DataError, match=r"task 'own', train, row 1[\s\S]*0\.\.2[\s\S]*num_labels=4"):
        make_trainer(tasks=tasks, model=model)
