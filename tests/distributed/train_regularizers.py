"""A tiny training with each regularizer, on two processes or alone. A part of trainings.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed

import hfadapt
from hfadapt import plugins
from hfadapt.testing.regularizers import tiny_batch, tiny_classifier
from tests.distributed.arguments import arguments

LARGE = {
    "smart": {"epsilon": 0.05, "sigma": 0.02, "step_size": 0.04},
    "r3f": {"sigma": 0.05},
    "r4f": {"sigma": 0.05},
    "freelb": {"weight": 0.5},
}


def train(folder: Path, name: str, rows_a_process: int) -> dict[str, torch.Tensor]:
    """Two steps of two accumulated batches; float64, and no dropout, whose masks differ between layouts."""
    set_seed(0)
    dropout = 1e-9 if name == "r_drop" else 0.0
    model = tiny_classifier(hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0)
    batch = tiny_batch(16)
    rows: Any = [{key: value[row] for key, value in batch.items()} for row in range(16)]
    args = arguments(
        folder,
        max_steps=2,
        per_device_train_batch_size=rows_a_process,
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    hfadapt.regularize(trainer, name, **LARGE.get(name, {}))
    trainer.train()
    return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}


def run(folder: Path, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """Train with every regularizer; each batch holds four rows, on all processes together."""
    return {name: train(folder, name, 4 // processes) for name in plugins.regularizers()}
