"""Started by torchrun: trains a tiny recipe and writes each rank's parameters and the tasks it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
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


def main(folder: Path, options: dict) -> None:
    """Train with the given options and write ``rank<N>.pt``."""
    tasks = toy_tasks((24, 16, 16))
    torch.manual_seed(options.get("seed", 3))
    model = MultiTaskModel.from_base(tiny_model("bert"), tasks, options["method"])
    mix = TaskMixture(tasks, tiny_tokenizer(), batch=options["batch"], strategy="sqrt", epoch_steps=3)
    watch = Watch()
    args = TrainingArguments(
        str(folder / "run"),
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
        save_steps=1,
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
    record = {"state": state, "tasks": watch.tasks, "moved": watch.moved, "scores": scores}
    torch.save(record, folder / f"rank{args.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
