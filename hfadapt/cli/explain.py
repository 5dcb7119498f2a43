"""``hfadapt explain``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import base_option, json_option, print_json, print_table
from .saved import load_saved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..adapters.follow import CallReport, SlotCall

__all__ = ["explain"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text", required=False)
@click.option("--task", help="Which task, or adapter; may be left out where MODEL holds one.")
@click.option("--pair", help="The second text, for tasks on pairs.")
@base_option
@json_option
def explain(model: Path, text: str | None, task: str | None, pair: str | None, base: str | None, as_json: bool) -> None:
    """Follow one real call of MODEL through the slots of a task's adapter.

    MODEL is the folder of a run or of an adapter. Each line is a slot that the hidden states came through, in order:
    the module of the base, what is changed there, whose method it is, which op computed it on which backend, the
    tensor's shape, and by how much it changed. TEXT is what is read; without it a small input is made up.
    """
    from ..adapters.follow import follow
    from ..recipes.finished_run import adapter_of

    folder = adapter_of(model)
    loaded: Any = load_saved(folder, base).eval()
    inner = loaded.base if _has_tasks(loaded) else loaded
    chosen = _chosen(loaded, inner, task, folder)
    call = _call(loaded, inner, chosen, folder, text, pair)
    report = follow(inner, call, _adapters(loaded, inner, chosen))
    if as_json:
        print_json({"model": str(model), "task": chosen, **report.to_dict()})
    else:
        _print(chosen, report)


def _chosen(loaded: Any, inner: PreTrainedModel, task: str | None, folder: Path) -> str:
    """Return the task, or the adapter where there are no tasks.

    Raises:
        TaskError: there is no such one, or several and none was named.
    """
    from ..errors import TaskError, did_you_mean
    from ..runtime.attachment import attachment

    names = [one.name for one in loaded.tasks] if _has_tasks(loaded) else list(attachment(inner).names)
    if task is None and len(names) == 1:
        return names[0]
    if task is None or task not in names:
        near = did_you_mean(task, names) if task is not None else ""
        raise TaskError(
            "the folder holds several tasks" if task is None else f"no task {task!r}",
            where=str(folder),
            got="no --task" if task is None else repr(task),
            allowed=", ".join(names),
            try_=near or f"--task {names[0]}",
        )
    return task


def _has_tasks(loaded: Any) -> bool:
    from ..multitask.model import MultiTaskModel

    return isinstance(loaded, MultiTaskModel)


def _route(loaded: Any, chosen: str) -> str:
    """The adapter or composition of a task's rows."""
    return loaded.routes.get(chosen, chosen) if _has_tasks(loaded) else chosen


def _adapters(loaded: Any, inner: PreTrainedModel, chosen: str) -> tuple[str, ...]:
    from ..routing.composition import adapter_names
    from ..runtime.attachment import attachment

    route = _route(loaded, chosen)
    return tuple(dict.fromkeys(adapter_names(attachment(inner).compositions.get(route, route))))


def _call(loaded: Any, inner: Any, chosen: str, folder: Path, text: str | None, pair: str | None) -> Callable[[], Any]:
    """What is run: a prediction of the text, or a call of the base with inputs that fit it."""
    if text is None:
        if pair is not None:
            raise click.UsageError("--pair goes with a TEXT")
        from ..architecture.inputs import first_that_runs

        route = _route(loaded, chosen)
        inputs, _ = first_that_runs(inner, 1, lambda given: inner(**given, task_ids=route))
        return lambda: inner(**inputs, task_ids=route)
    if _has_tasks(loaded):
        from ..inference.predict import Predictor, tokenizer_of

        predictor = Predictor(loaded, tokenizer_of(folder, loaded))
        return lambda: predictor.predict(text, chosen, pair)
    from ..data.tokenizer import load_tokenizer

    rows = load_tokenizer(str(inner.config._name_or_path))(text, pair, return_tensors="pt")
    return lambda: inner(**rows, task_ids=chosen)


def _print(task: str, report: CallReport) -> None:
    rows = (
        (number, one.module, one.slot, one.method, ", ".join(one.adapters), _ops(one), list(one.shape), _change(one))
        for number, one in enumerate(report.slots, 1)
    )
    columns = ["", "module", "slot", "method", "adapter", "op (backend)", "shape", "changed by"]
    print_table(columns, rows, title=f"{task}: {len(report.slots)} slots")
    for op, backend, count in report.base_ops:
        click.echo(f"outside of slots: {op} ({backend}), {count} times")
    for place in report.silent:
        click.echo(f"not reached in this call: {place}")


def _ops(one: SlotCall) -> str:
    return ", ".join(f"{op} ({backend})" for op, backend in one.ops) or "torch's own"


def _change(one: SlotCall) -> str | None:
    return None if one.change is None else f"{one.change:.2%}"
