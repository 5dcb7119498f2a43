"""One optimizer with rates of its own for each task."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

import hfadapt
from hfadapt.errors import ConfigError, TaskError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks

NAMES = [task.name for task in toy_tasks()]
FIRST, SECOND = NAMES[:2]


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(
        str(tmp_path), learning_rate=1e-2, weight_decay=0.01, report_to=[], use_cpu=True, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, disable_tqdm=True, save_strategy="no", max_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip


def values(model, optimizer):
    """Parameter name to learning rate and weight decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("method", ["lora", "pal", "prefix"])
def test_a_tasks_adapter_and_head_have_its_values_and_nothing_else_does(args, method):
    model = toy_model(toy_tasks(), method)
    optimizer = hfadapt.task_optimizer(
        model, args, learning_rates={FIRST: 5e-2}, weight_decays={FIRST: 0.5}, head_learning_rate=0.1
    )
    found = values(model, optimizer)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    sizes = dict(model.named_parameters())
    for name, (rate, decay) in found.items():
        own, head, matrix = f".{FIRST}." in f".{name}", name.startswith("heads."), sizes[name].dim() > 1
        assert rate == (5e-2 if own else 0.1 if head else 1e-2), name
        assert decay == ((0.5 if own else 0.01) if matrix else 0.0), name
    assert {name.split(".")[0] for name in found if f".{FIRST}." in f".{name}"} >= {"heads"}


def test_without_options_it_is_trainers_own(args):
    model = toy_model(toy_tasks(), "lora")
    found = values(model, hfadapt.task_optimizer(model, args))
    theirs = values(model, Trainer(model=model, args=args).create_optimizer())
    assert {name: rate for name, (rate, _) in found.items()} == {name: rate for name, (rate, _) in theirs.items()}


def test_a_plain_trainer_moves_each_task_at_its_rate(make_trainer, args):
    moved = {}
    for rates in ({}, {FIRST: 3e-2}):
        torch.manual_seed(0)
        trainer = make_trainer(mixture={"strategy": "round_robin", "batch": "mixed"}, max_steps=1, optim="sgd",
                               lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0)  # fmt: skip
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.optimizer = hfadapt.task_optimizer(trainer.model, trainer.args, learning_rates=rates)
        trainer.train()
        moved[bool(rates)] = {
            name: dict(trainer.model.named_parameters())[name].detach() - p for name, p in before.items()
        }
    compared = 0
    for name, step in moved[False].items():
        if step.abs().max() > 0:
            times = 3.0 if f".{FIRST}." in f".{name}." else 1.0
            torch.testing.assert_close(moved[True][name], times * step, rtol=1e-3, atol=1e-7)
            compared += 1
    assert compared > 4


def test_adapters_of_a_stock_model_are_named_as_tasks(args):
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, "lora", "a")
    hfadapt.attach(model, "lora", "b")
    found = values(model, hfadapt.task_optimizer(model, args, learning_rates={"b": 0.5}))
    assert {rate for name, (rate, _) in found.items() if ".b." in name} == {0.5}
    assert {rate for name, (rate, _) in found.items() if ".b." not in name} == {1e-2}


def test_what_does_not_fit_is_refused(args):
    model = toy_model(toy_tasks(), "lora")
    with pytest.raises(TaskError, match="no task 'nope'"):
        hfadapt.task_optimizer(model, args, learning_rates={"nope": 1e-3})
    with pytest.raises(ConfigError, match="learning_rates"):
        hfadapt.task_optimizer(model, args, learning_rates={FIRST: -1e-3})
    with pytest.raises(ConfigError, match="weight_decays"):
        hfadapt.task_optimizer(model, args, weight_decays={FIRST: float("nan")})
    with pytest.raises(ConfigError, match="got: dict; allowed: TrainingArguments"):
        hfadapt.task_optimizer(model, {"learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="head_learning_rate"):
        hfadapt.task_optimizer(model, args, head_learning_rate=0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TaskError, match="nothing of the task trains"):
        hfadapt.task_optimizer(model, args, learning_rates={SECOND: 1e-3})
