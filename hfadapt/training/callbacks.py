"""Callbacks that let a plain Trainer train several tasks: order of the data, idle tasks, dropped depth.

``on_init_end`` is the one moment at which the Trainer's arguments are known and nothing is built from them yet; what
must hold for the run is set or refused there.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import routing
from ..adapters.activate import set_adapter_drop
from ..data.schedule import Layout
from ..errors import ConfigError, did_you_mean
from ..errors.limits import require_number
from ..errors.names import names_of
from ..runtime.attachment import adapted_model, attachment, deltas_of, find_attachment, slots_of
from ..runtime.shards import is_shard, whole
from .checks import (
    Mixture,
    base_name,
    require_mixture,
    require_names,
    require_order,
    require_same_tasks,
    settle_best_metric,
    takes_task_ids,
)
from .uncounted import require_one_reader

if TYPE_CHECKING:
    from torch import nn

    from ..method.delta import Delta

__all__ = ["EpochSync", "IdleTaskGuard", "RobustAdapterDrop"]

logger = logging.getLogger(__name__)


class EpochSync(TrainerCallback):
    """Fits a mixture to the Trainer's arguments, and tells it which epoch it is.

    Args:
        mixture: Whose training set the Trainer was given.
    """

    def __init__(self, mixture: Mixture) -> None:
        require_mixture(mixture, "EpochSync")
        self.mixture = mixture

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the sequential sampler, plan the schedule and find the tokenizer.

        Raises:
            ConfigError: an argument contradicts the mixture's own order of rows, or the model has other tasks.
            DataError: no tokenizer is known, or a label is outside the classes of the base's own head.
            TaskError: a task has a name by which Trainer tells its metrics apart.
        """
        require_names(self.mixture.tasks)
        require_order(args)
        require_one_reader(args, self.mixture.schedule)
        settle_best_metric(args, self.mixture.metrics)
        self.mixture.metrics.label_names = tuple(args.label_names or ("labels",))
        model = kwargs.get("model")
        require_same_tasks(model, self.mixture)
        if not takes_task_ids(model) and "task_ids" not in (args.label_names or ()):
            # a stock model's forward does not name task_ids; Trainer would drop the column without a word
            args.remove_unused_columns = False
        seed = args.data_seed if args.data_seed is not None else args.seed
        if self.mixture.reads_text and self.mixture.collator.tokenizer is None:
            self.mixture.bind(kwargs.get("processing_class") or base_name(model))
        # tokenised first: how many rows there are may depend on it
        self.mixture.plan(self._layout(args), seed)

    def _layout(self, args: TrainingArguments) -> Layout:
        split = bool(getattr(args.accelerator_config, "split_batches", False))
        layout = Layout(args.train_batch_size, args.gradient_accumulation_steps, 1 if split else args.world_size)
        steps = self.mixture.with_layout(layout).steps
        epochs = math.ceil(args.max_steps / steps) if args.max_steps > 0 else math.ceil(args.num_train_epochs)
        return Layout(layout.batch_size, layout.accumulation, layout.processes, max(1, epochs))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse arguments that were changed after the Trainer was made.

        Raises:
            ConfigError: they no longer fit the plan.
        """
        require_order(args)
        if self._layout(args) != self.mixture.schedule.layout:
            raise ConfigError(
                "the training arguments changed after the Trainer was made",
                where="TaskMixture",
                got=f"{self._layout(args)}",
                allowed=f"{self.mixture.schedule.layout}, as planned",
                try_="make a new Trainer with the new arguments",
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the epoch's rows, counted from the global step so that a resumed run agrees."""
        self.mixture.train.set_epoch(state.global_step // self.mixture.schedule.steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say which tasks were never drawn: their adapters and heads are as they were made."""
        untrained = self.mixture.untrained(state.global_step)
        if untrained:
            logger.warning("never drawn in %d steps, so untrained: %s", state.global_step, ", ".join(untrained))


class IdleTaskGuard(TrainerCallback):
    """Keeps still what a step did not use, where everything had to have a gradient.

    Data-parallel ranks must agree on which parameters have gradients, so there all tasks and dropped layers end with
    gradients of zero; under AdamW momentum and weight decay would still move them. After the all-reduce every rank sees
    the same zeros, so each sets them to ``None`` without asking the others. A place of an adapter (or a head) counts as
    idle only when all its gradients are zero: one zero alone is normal (LoRA's A at the first step).
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the gradients of idle places to ``None``."""
        if not (routing.all_tasks_take_part() or args.torch_compile):
            return
        groups = [[p for p in group if p.grad is not None] for group in parameters_by_place(kwargs["model"])]
        gradients = [p.grad for group in groups for p in group if p.grad is not None]
        if not gradients:
            return
        largest = iter(_largest(gradients))
        for group in groups:
            # written this way round, NaN counts as movement and is left for the Trainer to see
            idle = [next(largest) == 0 for _ in group]
            if all(idle):
                for parameter in group:
                    parameter.grad = None


def _largest(gradients: list[torch.Tensor]) -> list[float]:
    """The largest magnitude in each gradient, over all processes where it lies in shards."""
    if any(map(is_shard, gradients)):
        return torch.stack([whole(torch.linalg.vector_norm(grad, float("inf"))) for grad in gradients]).tolist()
    # one synchronisation with the device for all of them
    return torch.stack(torch._foreach_norm(gradients, float("inf"))).tolist()


def parameters_by_place(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return those of each task's adapter at each place, of copies, fusion layers and heads, and what is shared."""
    found: list[list[nn.Parameter]] = []
    state = find_attachment(model)
    base = adapted_model(model)
    for _, delta in deltas_of(base):
        found += _by_adapter(delta)
    shared = getattr(base, "hfadapt_shared", None)
    if isinstance(shared, torch.nn.ModuleDict):
        found += [list(own.parameters()) for own in shared.values()]
    if state is not None:
        for _, slot in slots_of(base):  # those of a fusion layer have copies in its name
            found += [list(own.parameters()) for own in (*slot.fusions.values(), *slot.copies.values())]
    heads = getattr(model, "heads", None)
    if isinstance(heads, torch.nn.ModuleDict):
        found += [list(head.parameters()) for head in heads.values()]
    return found


def _by_adapter(delta: Delta) -> list[list[nn.Parameter]]:
    """Return what each adapter has for itself at a place, and last what several of them share."""
    own = [list(weights.parameters()) for weights in delta.adapters.values()]
    times = Counter(id(parameter) for group in own for parameter in group)
    common = {id(p): p for group in own for p in group if times[id(p)] > 1}
    return [*([p for p in group if id(p) not in common] for group in own), list(common.values())]


class RobustAdapterDrop(TrainerCallback):
    """Robust AdapterDrop training (Rücklé et al. 2021): each step drops the adapters of the n lowest layers.

    n is uniform over ``0 .. max``, both ends included, and depends only on seed, global step and stack: all ranks and
    all accumulated micro-batches agree, and a resumed run draws what it would have drawn. Outside training steps, in
    particular in evaluation, the depth is the one that was set before training.

    Args:
        max: Largest n for all stacks, or by stack (kind or path); by default L - 1 of each stack.
        stacks: Which stacks to drop in, by kind or path; by default all.
        seed: Of the draws; by default the Trainer's seed.

    Raises:
        ConfigError: a number is no whole number of at least 0.
    """

    def __init__(
        self,
        max: int | Mapping[str, int] | None = None,
        *,
        stacks: str | Iterable[str] | None = None,
        seed: int | None = None,
    ) -> None:
        for stack, limit in (max if isinstance(max, Mapping) else {"all stacks": max}).items():
            where = f"RobustAdapterDrop, {stack}"
            require_number("max", limit, where=where, whole=True, optional=not isinstance(max, Mapping), least=0)
        require_number("seed", seed, where="RobustAdapterDrop", whole=True, optional=True, least=0)
        self.max = max
        self.stacks = None if stacks is None else names_of(stacks)
        self.seed = seed
        self._limits: dict[str, int] = {}
        self._requested: dict[str, int] = {}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Work out the limits.

        Raises:
            ConfigError: a limit is out of range.
        """
        model = kwargs["model"]
        attached = find_attachment(model)
        if attached is None:
            raise ConfigError(
                "no adapter to drop",
                where="RobustAdapterDrop",
                got=type(model).__name__,
                allowed="a model with adapters, or one that holds such a base",
                try_="hfadapt.attach the model first",
            )
        self._limits = self._find_limits({(s.path, s.kind): s.num_layers for s in attached.arch.stacks})

    def _find_limits(self, layers: dict[tuple[str, str], int]) -> dict[str, int]:
        known = [name for pair in layers for name in pair]
        wanted = dict(self.max) if isinstance(self.max, Mapping) else {}
        for name in [*(self.stacks or ()), *wanted]:
            if name not in known:
                raise ConfigError(
                    f"no stack {name!r}",
                    where="RobustAdapterDrop",
                    got=repr(name),
                    allowed=", ".join(sorted(set(known))),
                    try_=did_you_mean(name, known) or "leave stacks out, which takes all",
                )
        limits: dict[str, int] = {}
        for (path, kind), count in layers.items():
            if self.stacks is not None and not {path, kind} & set(self.stacks):
                continue
            if isinstance(self.max, Mapping):
                if not {path, kind} & set(wanted):
                    continue
                limit = wanted[path] if path in wanted else wanted[kind]
            else:
                limit = count - 1 if self.max is None else self.max
            if not 0 <= limit <= count:
                raise ConfigError(
                    "cannot drop that many layers",
                    where=f"RobustAdapterDrop, stack {path}",
                    got=limit,
                    allowed=f"0..{count} ({count} layers; the paper draws up to {count - 1})",
                    try_=f"max={max(count - 1, 0)}",
                )
            limits[path] = limit
        return limits

    def draw(self, seed: int, step: int) -> dict[str, int]:
        """Return the depth of each stack at a global step."""
        return {
            path: int(np.random.default_rng([seed, step, number]).integers(0, limit, endpoint=True))
            for number, (path, limit) in enumerate(self._limits.items())
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the depth that evaluation uses."""
        self._requested = dict(attachment(kwargs["model"]).drop)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw this step's depth."""
        seed = self.seed if self.seed is not None else args.seed
        set_adapter_drop(kwargs["model"], {**self._requested, **self.draw(seed, state.global_step)})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Go back to the requested depth: the Trainer evaluates and saves before it says that it does."""
        set_adapter_drop(kwargs["model"], self._requested or None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same after a step that was cut off."""
        set_adapter_drop(kwargs["model"], self._requested or None)
