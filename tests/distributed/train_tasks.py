"""Three tasks of one model, whole, mixed and resumed. A part of trainings.py."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

from hfadapt import MultiTaskModel, RobustAdapterDrop, TaskMixture
from hfadapt.data.schedule import BatchForm
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks
from tests.distributed.arguments import arguments


class Watch(TrainerCallback):
    """Records the tasks of each step and the parameters that moved."""

    def __init__(self) -> None:
        self.tasks: list[int] = []
        self.moved: list[list[str]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        kwargs["model"].register_forward_pre_hook(self._forward, with_kwargs=True)

    def _forward(self, module, args, kwargs):
        if module.training:
            self.tasks.append(kwargs["task_ids"].tolist())

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = {n: p.detach().clone() for n, p in kwargs["model"].named_parameters() if p.requires_grad}

    def on_step_end(self, args, state, control, **kwargs):
        now = dict(kwargs["model"].named_parameters())
        self.moved.append([n for n, p in self.before.items() if not torch.equal(p, now[n])])


def train(
    folder: Path,
    *,
    batch: BatchForm = "one_task",
    dropped: bool = False,
    resume: Path | None = None,
    processes: int = 2,
) -> dict:
    """Train three tasks together; each batch holds four rows, on all processes together."""
    tasks = toy_tasks((24, 16, 16))
    torch.manual_seed(3)
    model = MultiTaskModel.from_base(tiny_model("bert"), tasks, "low_rank")
    mix = TaskMixture(tasks, tiny_tokenizer(), batch=batch, strategy="sqrt", epoch_steps=3)
    watch = Watch()
    args = arguments(
        folder,
        per_device_train_batch_size=4 // processes,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        weight_decay=0.1,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=2,
        checkpointing=dropped,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=mix.train,
        eval_dataset=mix.eval,
        data_collator=mix.collator,
        compute_metrics=mix.metrics,
        callbacks=[*mix.callbacks, watch, *([RobustAdapterDrop()] if dropped else [])],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    scores = [entry["eval_macro"] for entry in trainer.state.log_history if "eval_macro" in entry]
    state = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {"state": state, "tasks": watch.tasks, "moved": watch.moved, "scores": scores}


def run(folder: Path) -> dict[str, dict]:
    """Train in batches of one task, and in mixed ones with dropped layers and checkpointing."""
    return {"whole": train(folder / "whole"), "mixed": train(folder / "mixed", batch="mixed", dropped=True)}


def resume(folder: Path, into: Path | None = None, processes: int = 2) -> dict:
    """Go on from a checkpoint of the first of these."""
    checkpoint = folder / "whole" / "checkpoint-4"
    return train(folder / "again" if into is None else into, resume=checkpoint, processes=processes)
