"""Started by torchrun: tiny trainings one after the other; writes what each rank saw and ended with.

Most of the time of such a test goes into starting the processes, so several trainings share one start.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from train_stock import train_stock
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfadapt import MultiTaskModel, RobustAdapterDrop, TaskMixture
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks


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


def train_tasks(folder: Path, options: dict) -> dict:
    """Train three tasks together with the given options."""
    tasks = toy_tasks((24, 16, 16))
    torch.manual_seed(options.get("seed", 3))
    model = MultiTaskModel.from_base(tiny_model("bert"), tasks, options["method"])
    mix = TaskMixture(tasks, tiny_tokenizer(), batch=options["batch"], strategy="sqrt", epoch_steps=3)
    watch = Watch()
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=2,
        logging_strategy="no",
        # ranks that agree on every draw need no such help
        ddp_find_unused_parameters=False,
        gradient_checkpointing=options["checkpointing"],
        **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if options["checkpointing"] else {}),
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=mix.train,
        eval_dataset=mix.eval,
        data_collator=mix.collator,
        compute_metrics=mix.metrics,
        callbacks=[*mix.callbacks, watch, *([RobustAdapterDrop()] if options["drop"] else [])],
    )
    trainer.train(resume_from_checkpoint=options.get("resume"))
    scores = [entry["eval_macro"] for entry in trainer.state.log_history if "eval_macro" in entry]
    state = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {"state": state, "tasks": watch.tasks, "moved": watch.moved, "scores": scores}


TRAININGS = {"tasks": train_tasks, "stock": train_stock}


def main(folder: Path, runs: dict[str, dict]) -> None:
    """Do each training, in a folder of its name, and write ``rank<N>.pt``."""
    records = {name: TRAININGS[options["training"]](folder / name, options) for name, options in runs.items()}
    torch.save(records, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
