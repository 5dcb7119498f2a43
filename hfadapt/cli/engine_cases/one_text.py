"""Eight tasks on one text: beside eight passes one after another, and beside AdapterHub's ``Parallel``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .case import Case, Rival, Sizes
from .models import BOTTLENECK, adapted, engine_of
from .rivals import Rivals

__all__ = ["float32", "int8"]

TASKS = 8


def float32(sizes: Sizes) -> list[Case]:
    """Beside the same engine, asked for one task after another."""
    goals = {0: 1.05, sizes.layers // 2: 1.2}
    return [
        Case(
            _name(sizes, drop),
            lambda engine=engine, text=text: engine.predict_all(text) and None,
            [Rival("eight passes one after another", _one_by_one(engine, text), goals[drop])],
            f"1 x {sizes.tokens}",
        )
        for drop, engine, text in _engines(sizes, "float32")
    ]


def int8(sizes: Sizes, rivals: Rivals) -> list[Case]:
    """Beside AdapterHub's library, whose products are float32."""
    found = []
    for drop, engine, text in _engines(sizes, "int8_dynamic"):
        shape = {"layers": sizes.layers, "hidden": sizes.hidden, "rows": 1, "tokens": sizes.tokens}
        rival = rivals.call("parallel", **shape, tasks=TASKS, drop=drop)
        found.append(
            Case(
                _name(sizes, drop),
                lambda engine=engine, text=text: engine.predict_all(text) and None,
                [Rival("adapters, Parallel", rival, 3.0)],
                f"1 x {sizes.tokens}",
                "int8_dynamic",
            )
        )
    return found


def _engines(sizes: Sizes, dtype: str) -> Iterator[tuple[int, Any, str]]:
    """Engines that drop the adapters of no layer and of the lower half, and the text that they read."""
    import hfadapt

    from ...testing.toy import tiny_tokenizer

    text = " ".join(f"w{word % 95}" for word in range(sizes.tokens - 2))
    for drop in (0, sizes.layers // 2):
        base = adapted(sizes, BOTTLENECK, TASKS)
        hfadapt.set_adapter_drop(base, drop)
        yield drop, engine_of(base, [f"t{i}" for i in range(TASKS)], dtype, tiny_tokenizer("right", sizes.tokens)), text


def _one_by_one(engine: Any, text: str) -> Callable[[], None]:
    def run() -> None:
        for task in engine.tasks:
            engine.predict(text, task.name)

    return run


def _name(sizes: Sizes, drop: int) -> str:
    return f"{TASKS} tasks on one text, bottlenecks in {sizes.layers - drop} of {sizes.layers} layers"
