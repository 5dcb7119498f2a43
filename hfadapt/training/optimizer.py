"""One optimizer for tasks that learn at rates of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ..errors import ConfigError, TaskError, did_you_mean
from ..errors.limits import require_number
from ..runtime.attachment import adapted_model, find_attachment, parameters_of

__all__ = ["task_optimizer"]


def task_optimizer(
    model: nn.Module,
    args: TrainingArguments,
    *,
    learning_rates: Mapping[str, float] | None = None,
    weight_decays: Mapping[str, float] | None = None,
    head_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """Return the Trainer's own optimizer, in which tasks, and heads, have rates of their own.

    ```python
    optimizer = task_optimizer(model, args, learning_rates={"rte": 1e-3}, weight_decays={"rte": 0.1})
    Trainer(model=model, args=args, optimizers=(optimizer, None), ...)  # it makes the schedule, which scales all alike
    ```

    What belongs to a task is its adapter, with what that shares among layers, and its head. Everything else, and what
    is not named here, has the arguments' own values.

    Args:
        model: A ``MultiTaskModel``, or a model whose adapters are named as tasks here.
        args: Choose the optimizer and its other options.
        learning_rates: Task to its learning rate.
        weight_decays: Task to its weight decay; biases and norms are not decayed, as in Trainer.
        head_learning_rate: Of the heads of tasks without a rate of their own (heads start from nothing while deltas
            start from a good encoder: in a short run they need larger steps).

    Raises:
        TaskError: no task has such a name, or it has nothing that trains.
        ConfigError: ``args`` are no training arguments, a number is out of range, tasks with different values share a
            parameter, or the optimizer does not take groups of its own.
    """
    if not isinstance(args, TrainingArguments):
        raise ConfigError(
            "no training arguments",
            where="task_optimizer",
            got=type(args).__name__,
            allowed="TrainingArguments",
            try_="those that Trainer gets",
        )
    rates, decays = dict(learning_rates or {}), dict(weight_decays or {})
    for name, values in (("learning_rates", rates), ("weight_decays", decays)):
        for task, value in values.items():
            require_number(f"{name}[{task!r}]", value, where="task_optimizer", least=0)
    require_number("head_learning_rate", head_learning_rate, where="task_optimizer", optional=True, above=0)
    owners = _owners(model)
    _require_known(owners, {*rates, *decays}, model)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # pyright: ignore[reportArgumentType]
    if "optimizer_dict" in options:
        raise ConfigError(
            "this optimizer has a group for every parameter, and no place for those of tasks",
            where="task_optimizer",
            got=f"optim={str(args.optim)!r}",
            allowed="an optimizer that takes several parameters in a group",
            try_="optim='adamw_torch'",
        )
    of = _tasks_of(owners, rates, decays)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        task = of.get(id(parameter))
        general = head_learning_rate if head_learning_rate and name.startswith("heads.") else args.learning_rate
        rate = rates.get(task, general) if task else general
        decay = decays.get(task, args.weight_decay) if task else args.weight_decay
        # as Trainer has it: biases and norms are not decayed
        groups.setdefault((rate, decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    return kind([{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()], **options)


def _owners(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return what belongs to each task: its adapter's parameters, and its head's."""
    base: Any = adapted_model(model)
    state, tasks = find_attachment(model), getattr(model, "tasks", ())
    found: dict[str, list[nn.Parameter]] = {task.name: [] for task in tasks}
    for name in state.names if state is not None else ():
        found.setdefault(name, []).extend(parameters_of(base, name).values())
    heads = getattr(model, "heads", None)
    if isinstance(heads, nn.ModuleDict):
        for name, head in heads.items():
            found.setdefault(name, []).extend(head.parameters())
    return found


def _require_known(owners: Mapping[str, list[nn.Parameter]], named: set[str], model: nn.Module) -> None:
    for name in sorted(named):
        if name not in owners:
            raise TaskError(
                f"no task {name!r}",
                where=f"task_optimizer, {type(model).__name__}",
                got=repr(name),
                allowed=", ".join(owners) or "none: nothing is attached",
                try_=did_you_mean(name, list(owners)) or "hfadapt.attach(model, method, name) first",
            )
        if not any(parameter.requires_grad for parameter in owners[name]):
            raise TaskError(
                "nothing of the task trains",
                where=f"task_optimizer, task {name!r}",
                got=f"{len(owners[name])} parameters, none with requires_grad",
                allowed="tasks with a parameter that trains",
                try_=f"hfadapt.unfreeze(model, {name!r}), or leave the task out",
            )


def _tasks_of(
    owners: Mapping[str, list[nn.Parameter]], rates: Mapping[str, float], decays: Mapping[str, float]
) -> dict[int, str]:
    """Return the task of each parameter, by its identity."""
    found: dict[int, str] = {}
    for name, parameters in owners.items():
        for parameter in parameters:
            other = found.setdefault(id(parameter), name)
            if (rates.get(other), decays.get(other)) != (rates.get(name), decays.get(name)):
                raise ConfigError(
                    "two tasks share parameters, which can only have one learning rate and one weight decay",
                    where="task_optimizer",
                    got=f"{other!r} and {name!r} have different ones",
                    allowed=f"rate {rates.get(other, 'of args')}, decay {decays.get(other, 'of args')} for both",
                    try_=f"the values of {other!r} for {name!r} too, or none of its own for either",
                )
    return found
