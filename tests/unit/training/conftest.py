"""A tiny training run with a plain Trainer."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfadapt import MultiTaskModel, TaskMixture
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that builds a Trainer; every call starts from the same weights."""

    def build(
        folder="run", *, tasks=None, method="low_rank", mixture=None, callbacks=(), model=None, train_base=False, **args
    ):
        tasks = toy_tasks() if tasks is None else tasks
        if model is None:
            torch.manual_seed(11)
            model = MultiTaskModel.from_base(tiny_model("bert"), tasks, method, train_base=train_base)
        mix = TaskMixture(tasks, tiny_tokenizer(), **(mixture or {}))
        settings = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            **args,
        }
        return Trainer(
            model=model,
            args=TrainingArguments(str(tmp_path / folder), **settings),
            train_dataset=mix.train,
            eval_dataset=mix.eval,
            data_collator=mix.collator,
            compute_metrics=mix.metrics,
            callbacks=[*mix.callbacks, *callbacks],
        )

    return build


@pytest.fixture
def trained():
    """Return a function that copies the trainable parameters of a model."""

    def copy(model):
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    return copy
