"""A stock model with several adapters, on the plain Trainer; each rank has its own task. A part of trainings.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

import hfadapt
from hfadapt.testing.tiny import tiny_model
from hfadapt.training import IdleTaskGuard
from tests.distributed.arguments import arguments

NAMES = ("a", "b", "c")


class Rows(Dataset):
    """Rows in the order in which two ranks take turns: even rows go to rank 0, odd ones to rank 1."""

    def __init__(self, tasks: list[int]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(5, 90, (6,), generator=generator)
        return {"input_ids": ids, "labels": ids[0] % 2, "task_ids": torch.tensor(self.tasks[index])}


class Watch(TrainerCallback):
    """Records which adapters moved in each step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.moved: list[list[str]] = []

    def _copy(self) -> dict[str, list[torch.Tensor]]:
        return {name: [p.detach().clone() for p in hfadapt.parameters_of(self.model, name).values()] for name in NAMES}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = self._copy()

    def on_step_end(self, args, state, control, **kwargs):
        now = self._copy()
        changed = [n for n in NAMES if any(not torch.equal(a, b) for a, b in zip(self.before[n], now[n], strict=True))]
        self.moved.append(changed)


def train(folder: Path, *, dropped: bool) -> dict:
    """Train two steps; adapter ``c`` has no row at all, ``b`` none in the second step."""
    torch.manual_seed(3)
    model = tiny_model("bert", "sequence-classification", num_labels=2)
    hfadapt.attach(model, "bottleneck", names=NAMES)
    for name in NAMES:
        for parameter in hfadapt.parameters_of(model, name).values():
            torch.nn.init.normal_(parameter, std=0.1)
    watch = Watch(model)
    args = arguments(
        folder,
        per_device_train_batch_size=1,
        max_steps=2,
        weight_decay=0.1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        checkpointing=dropped,
    )
    drop = [hfadapt.RobustAdapterDrop()] if dropped else []
    Trainer(model=model, args=args, train_dataset=Rows([0, 1, 0, 0]), callbacks=[IdleTaskGuard(), watch, *drop]).train()
    state = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {"state": state, "moved": watch.moved}


def run(folder: Path) -> dict[str, dict]:
    """Train whole, and with dropped layers and checkpointing."""
    return {name: train(folder, dropped=name == "dropped") for name in ("whole", "dropped")}
