"""Two steps of every family of methods, mixed in a batch, on two processes or alone. A part of trainings.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

import hfadapt
from hfadapt.testing.conformance import randomize
from hfadapt.testing.regularizers import tiny_batch, tiny_classifier
from hfadapt.training import IdleTaskGuard
from tests.distributed.arguments import arguments

NAMES = ("a", "b", "c")
# Rows of two steps of two accumulated batches, four rows each: b is missing on one rank, or everywhere; c is nobody's.
TASKS = (0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0)
# These drop by default; masks are drawn for the rows of a process.
DROPPING = ("pal", "top_layer")
# One of each family: presets of the same deltas take the same way.
METHODS = (
    "bottleneck",
    "invertible",
    "lhuc",
    "lora",
    "low_rank",
    "mam",
    "mtl_lora",
    "pal",
    "pooler",
    "prefix",
    "top_layer",
    "unipelt",
)
FAMILIES = {
    **{name: {"method": {"method": name, **({"dropout": 0.0} if name in DROPPING else {})}} for name in METHODS},
    "fused": {"method": "bottleneck", "fused": True},
    "one task a batch": {"method": {"method": "pal", "dropout": 0.0}, "tasks": (0,) * 8 + (1,) * 8},
    "dropped": {"method": "mam", "drop": True},
}


class Killed(TrainerCallback):
    """The second process is killed behind its first step, as by a machine that has no memory left."""

    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, rows_a_process: int, family: dict[str, Any], *more: Any) -> dict[str, torch.Tensor]:
    """Train in float64 without dropout, whose masks differ between layouts."""
    set_seed(0)
    model: Any = tiny_classifier(None, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    hfadapt.attach(model, family["method"], names=NAMES, seed=0)
    randomize(model)
    if family.get("fused"):
        hfadapt.add_fusion(model, NAMES[:2])
    model.double()
    batch = {key: value for key, value in tiny_batch(16).items() if key != "task_ids"}
    rows: Any = [{key: value[row] for key, value in batch.items()} for row in range(16)]
    if not family.get("fused"):
        for row, task in zip(rows, family.get("tasks", TASKS), strict=True):
            row["task_ids"] = torch.tensor(task)
    args = arguments(
        folder,
        max_steps=2,
        per_device_train_batch_size=rows_a_process,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        max_grad_norm=0.1,
        train_sampling_strategy="sequential",
    )
    drop = [hfadapt.RobustAdapterDrop()] if family.get("drop") else []
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[IdleTaskGuard(), *drop, *more])
    trainer.train()
    return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}


def run(folder: Path, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """Train every family; each batch holds four rows, on all processes together."""
    return {name: train(folder, 4 // processes, family) for name, family in FAMILIES.items()}


def die(folder: Path) -> None:
    """Train on two processes, of which one does not live to the end."""
    train(folder, 2, FAMILIES["lora"], Killed())
