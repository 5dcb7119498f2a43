"""Puts a regularizer into a plain ``Trainer``, in one line."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ...architecture.modes import evaluating
from ...errors import ConfigError
from ...runtime.embedding_noise import word_embeddings
from .choice import Choice, chosen
from .noise import Noise
from .passes import random_state, set_random_state
from .proximal import Teacher, read_teacher
from .regularizer import Regularizer
from .rows import Group, groups_of, selected
from .step import Step
from .update import MicroBatch, Update

__all__ = ["Regularization", "regularize"]

logger = logging.getLogger(__name__)


def regularize(trainer: Trainer, regularizer: Choice, **options: Any) -> Regularization:
    """Let a plain ``Trainer`` train with a regularizer: ``regularize(trainer, "smart", epsilon=1e-5)``.

    Works with accumulated batches, clipping, autocast, activation checkpointing, ``torch.compile`` and DDP, with every
    method attached or none. Evaluation is as it was.

    Args:
        trainer: Made and not yet training.
        regularizer: A registered name; a ``Regularizer``; its options with its ``name``; or, for a ``MultiTaskModel``,
            one of these a task (``{"rte": "smart", "cola": None}``; tasks left out train without).
        options: Of a regularizer given by name.

    Returns:
        What was put in; its ``remove()`` takes it out again.

    Raises:
        RegistryError: no regularizer has that name.
        ConfigError: an option is not allowed, or regularizer, model and Trainer do not fit.
        ArchitectureError: it perturbs word embeddings, and the model has none.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigError(
            "no Trainer",
            where="regularize",
            got=repr(trainer)[:80],
            allowed="a transformers.Trainer",
            try_="regularize(Trainer(model=model, args=args, ...), 'smart')",
        )
    if isinstance(getattr(trainer, "compute_loss", None), functools.partial) or _of(trainer) is not None:
        raise ConfigError(
            "this Trainer has a regularizer already",
            where="regularize",
            got=type(trainer).__name__,
            allowed="one regularizer a Trainer",
            try_="regularize(...).remove() first; the Trainer of another run can have another",
        )
    return Regularization(trainer, chosen(regularizer, options, trainer.model))


def _of(trainer: Trainer) -> Regularization | None:
    return getattr(trainer.__dict__.get("compute_loss"), "__self__", None)


class Regularization(TrainerCallback):
    """A regularizer in a Trainer: stands before its ``train``, ``training_step`` and ``compute_loss``.

    Args:
        trainer: Whose it is.
        of_tasks: The regularizer of each task, by number; under None that of all tasks.
    """

    def __init__(self, trainer: Trainer, of_tasks: Mapping[int | None, Regularizer]) -> None:
        self.trainer = trainer
        self.of_tasks = of_tasks
        active = [one for one in dict.fromkeys(of_tasks.values()) if one.weight]
        self.active: Sequence[Regularizer] = active
        self._take_model()
        self.teachers: dict[Regularizer, Teacher] = {}
        self._repeated = next((one for one in active if one.repeats_updates), None)
        self._check(trainer)
        self._stock_train = trainer.train
        self._stock_step = trainer.training_step
        self._stock_loss = trainer.compute_loss
        self._training = False
        self._micro = 0
        self._batches: list[MicroBatch] = []
        self._again: Step | None = None
        self._made: Step | None = None
        self._resumed_from: Path | None = None
        self._own_passes = False
        self._divides: bool | None = None
        for name in ("train", "training_step", "compute_loss"):
            setattr(trainer, name, getattr(self, name))
        trainer.add_callback(self)

    def _take_model(self) -> None:
        model: Any = self.trainer.model
        self.module: nn.Module = self.trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
        self.leaves = word_embeddings(self.module) if any(one.perturbs_words for one in self.active) else ()
        for one in self.active:
            one.check_model(self.module)

    def remove(self) -> None:
        """Take it out of its Trainer."""
        for name in ("train", "training_step", "compute_loss"):
            self.trainer.__dict__.pop(name, None)
        self.trainer.remove_callback(self)

    def _check(self, trainer: Trainer) -> None:
        kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
        many = trainer.args.n_gpu > 1
        if self.active and (many or kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")):
            raise ConfigError(
                "a regularizer makes passes of its own, which this way of sharing the work does not allow",
                where="regularize",
                got=f"torch.nn.DataParallel over {trainer.args.n_gpu} devices" if many else kind,
                allowed="one device, or DistributedDataParallel",
                try_="torchrun --nproc_per_node=N, without FSDP and DeepSpeed",
            )
        if None not in self.of_tasks and self._repeated is not None:
            raise ConfigError(
                f"{self._repeated.name} goes over whole updates again, so it holds for all tasks or none",
                where="regularize",
                got="one regularizer a task",
                allowed="the same one for all tasks",
                try_=f"regularize(trainer, {self._repeated.name!r})",
            )
        if trainer.optimizer is not None and trainer.args.max_steps > 0:
            for one in self.active:
                one.check_run(trainer.args.max_steps, trainer.optimizer)

    # -- what Trainer calls ------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.train``; a checkpoint that is resumed must hold the teacher."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(str(self.trainer.args.output_dir))
        self._resumed_from = Path(folder) if isinstance(folder, str) else None
        if self._resumed_from is not None and any(one.proximal_point() for one in self.active):
            read_teacher(self._resumed_from)
        return self._stock_train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """``Trainer.training_step``, and after the last micro-batch of an update what goes over all of them again."""
        if not self.active:
            return self._stock_step(model, inputs, num_items_in_batch)
        loss = self._train_on(model, inputs, num_items_in_batch)
        self._micro += 1
        if self._repeated is not None and self._made is not None:
            again = functools.partial(self._repeat, model, inputs, num_items_in_batch, self._made)
            self._batches.append(MicroBatch(again, self._made))
            if self.trainer.accelerator.gradient_state.sync_gradients:
                alone = functools.partial(self.trainer.accelerator.no_sync, model)
                apply = functools.partial(self._apply, model)
                batches, self._batches = self._batches, []
                self._repeated.update(Update(self.module, batches, alone, apply))
        return loss

    def _train_on(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        self._training = True
        try:
            return self._stock_step(model, inputs, num_items_in_batch)
        finally:
            self._training = False

    def _repeat(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any, step: Step) -> None:
        step.again()
        self._again = step
        try:
            self._train_on(model, inputs, num_items_in_batch)
        finally:
            self._again = None

    def _apply(self, model: nn.Module) -> None:
        trainer = self.trainer
        if trainer.args.max_grad_norm and trainer.args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.callback_handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
        optimizer: Any = trainer.optimizer
        optimizer.step()
        model.zero_grad()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """``Trainer.compute_loss``; in training with what the regularizer makes of it."""
        stock = functools.partial(self._stock_loss, num_items_in_batch=num_items_in_batch)
        if not self._training:
            return stock(model, inputs, return_outputs=return_outputs)
        groups = groups_of(self.module, inputs, self.of_tasks)
        if all(group.regularizer is None for group in groups):
            return stock(model, inputs, return_outputs=return_outputs)
        compute = functools.partial(stock, return_outputs=True)
        total: Tensor | None = None
        output: Any = None
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            part = inputs if group.rows is None else selected(inputs, group.rows)
            step = self._step(model if last else None, part, group, compute, num_items_in_batch)
            loss = step.clean.loss if group.regularizer is None else group.regularizer.loss(step)
            total = group.share * loss if total is None else total + group.share * loss
            output = step.output
        assert total is not None  # a batch has rows
        return (total, output) if return_outputs else total

    def _step(
        self, model: nn.Module | None, inputs: dict[str, Any], group: Group, compute: Any, num_items_in_batch: Any
    ) -> Step:
        if self._again is not None:
            return self._again
        trainer, args = self.trainer, self.trainer.args
        scaled = self._is_scaled(num_items_in_batch)
        count = getattr(trainer, "current_gradient_accumulation_steps", args.gradient_accumulation_steps)
        first = (self._micro * args.world_size + args.process_index) * args.train_batch_size
        teacher = self.teachers.get(group.regularizer) if group.regularizer is not None else None
        step = Step(
            self.module,
            inputs,
            compute,
            noise=Noise((args.seed, trainer.state.global_step), [first + row for row in group.numbers]),
            wrapped=model,
            leaves=self.leaves,
            backward=functools.partial(self._backward, scale=group.share * (1.0 if scaled else 1 / count)),
            mixed=self._own_passes,
            teacher=None if teacher is None else teacher.teaching,
            term_scale=self._scale_of_means(inputs, num_items_in_batch, count) if scaled else 1.0,
        )
        self._made = step
        return step

    def _backward(self, loss: Tensor, scale: float) -> None:
        self.trainer.accelerator.backward(scale * loss)

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Say whether Trainer takes the loss for one that is divided by all items of the accumulated batches."""
        trainer: Any = self.trainer
        told = getattr(trainer, "loss_is_scaled_for_ga", None)
        if told is not None:
            return bool(told)
        return (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None) or (
            trainer.compute_loss_func is not None
        )

    def _scale_of_means(self, inputs: dict[str, Any], num_items_in_batch: Any, count: int) -> float:
        """Return the factor of a mean over a micro-batch that is added to a loss which Trainer does not divide.

        Trainer tells such a model how many items the accumulated batches hold on all ranks. Heads of older make take no
        notice and return the mean of their micro-batch, which Trainer then adds up and multiplies: what is added must
        be scaled as the loss is, or its weight would depend on the accumulation.
        """
        ranks = self.trainer.accelerator.num_processes if self.trainer.args.average_tokens_across_devices else 1
        if count == ranks == 1:
            return 1.0
        if self.trainer.compute_loss_func is not None:
            return 1 / count
        if self._divides is None:
            self._divides = self._finds_division(inputs, num_items_in_batch)
        return 1 / count if self._divides else float(ranks)

    def _finds_division(self, inputs: dict[str, Any], num_items_in_batch: Any) -> bool | None:
        """Say whether the model's loss halves when it is told of twice as many items; None where this batch has none.

        Two passes without gradient, once a run: no attribute of a model says which of the two its head does.
        """
        device = next(self.module.parameters()).device
        state = random_state(device)
        with torch.no_grad(), evaluating(self.module):
            once, twice = (
                getattr(self.module(**inputs, num_items_in_batch=times * num_items_in_batch), "loss", None)
                for times in (1, 2)
            )
        set_random_state(state, device)
        if once is None or twice is None:
            return False  # under label smoothing it is Trainer that computes the loss, a mean
        if not (once.isfinite() and once):
            return None
        return bool((once - 2 * twice).abs() <= 1e-3 * once.abs())

    # -- what Trainer's run tells ------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what does not fit the run, and make or read the teachers.

        Raises:
            ConfigError: a schedule is longer than the run, or the optimizer does not fit.
            CheckpointError: the run is resumed from a checkpoint with the teacher of another model, or with none.
        """
        if self.trainer.model_init is not None:  # with which every training has another model
            self._take_model()
        wrapped: Any = self.trainer.model_wrapped
        self._own_passes = self.trainer.accelerator.mixed_precision != "no" or _is_compiled(wrapped)
        for one in self.active:
            one.check_run(state.max_steps, kwargs.get("optimizer") or self.trainer.optimizer)
            proximal = one.proximal_point()
            if proximal is not None:
                self.teachers[one] = Teacher(self.module, proximal, state.max_steps)
                if self._resumed_from is not None:
                    self.teachers[one].load(self._resumed_from)
            _say_what_vanishes(one, self.leaves, self.trainer.accelerator.mixed_precision)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count micro-batches anew."""
        self._micro = 0
        self._batches.clear()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let teachers follow, but not a step that an overflow cut off."""
        if self.trainer.accelerator.optimizer_step_was_skipped:
            return
        for teacher in self.teachers.values():
            teacher.follow()
        with torch.no_grad():
            for one in self.active:
                one.after_update(self.module)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the teachers beside what Trainer saved."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            for teacher in self.teachers.values():
                teacher.save(folder)


def _is_compiled(model: nn.Module) -> bool:
    return any(
        "_orig_mod" in one._modules or getattr(one, "_compiled_call_impl", None) is not None for one in model.modules()
    )


def _say_what_vanishes(regularizer: Regularizer, leaves: Sequence[nn.Module], mixed: str) -> None:
    """Say, once a run, that a perturbation is smaller than the steps between numbers of the run's dtype."""
    if regularizer.radius is None or not leaves:
        return
    weight: Any = leaves[0].weight
    own = weight.dtype in (torch.bfloat16, torch.float16)
    of_run: dict[str, Any] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype: Any = weight.dtype if own else of_run.get(str(mixed), weight.dtype)
    size = float(weight.detach().float().abs().mean())
    gap = torch.finfo(dtype).eps * size
    if regularizer.radius >= gap:
        return
    what = f"{regularizer.name}: perturbations of {regularizer.radius:g} are below what {dtype} can hold"
    near = f"near {size:.2g}, the size of a word embedding here ({gap:.2g})"
    if own:
        logger.warning(
            "%s %s; they round to nothing or to one such step. Try float32 weights with autocast.", what, near
        )
    else:
        logger.warning("%s %s; searches and what they compare run in float32, outside of autocast.", what, near)
