"""Started by torchrun, or alone: a tiny training with each regularizer; writes what the process ended with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, set_seed

import hfadapt
from hfadapt import plugins
from hfadapt.testing.regularizers import tiny_batch, tiny_classifier

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
    rows = [{key: value[row] for key, value in batch.items()} for row in range(16)]
    args = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=rows_a_process,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        max_grad_norm=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        ddp_find_unused_parameters=False,
    )
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    hfadapt.regularize(trainer, name, **LARGE.get(name, {}))
    trainer.train()
    return {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    place, processes = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1"))
    found = {name: train(place, name, 4 // processes) for name in plugins.regularizers()}
    torch.save(found, place / f"{processes}-{os.environ.get('RANK', '0')}.pt")
