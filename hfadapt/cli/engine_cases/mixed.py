"""A batch whose every row is of another task, by LoRAs: beside the bare base, weight-only int8, peft and OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .case import Case, Rival, Sizes
from .models import LORA, adapted, batch, bert, packed
from .rivals import Rivals

__all__ = ["bare", "float32", "forward", "int8", "peft_model"]


def int8(sizes: Sizes, rivals: Rivals) -> list[Case]:
    """Rows and weights in int8, for as many tasks as there are rows."""
    rows = batch(sizes, sizes.tokens, sizes.rows)
    openvino = rivals.call("openvino", layers=sizes.layers, hidden=sizes.hidden, rows=sizes.rows, tokens=sizes.tokens)
    weights = packed(adapted(sizes, LORA, sizes.rows), "int8")
    return [
        Case(
            f"{sizes.rows} tasks mixed, LoRA r=8",
            forward(packed(adapted(sizes, LORA, sizes.rows), "int8_dynamic"), rows),
            [
                Rival("the same, int8 weights alone", forward(weights, rows), 3.2),
                Rival("bare base, torch float32", bare(sizes, rows), 2.7),
                Rival("bare base, OpenVINO int8", openvino, 1.0),
            ],
            f"{sizes.rows} x {sizes.tokens}",
            "int8_dynamic",
        )
    ]


def float32(sizes: Sizes) -> list[Case]:
    """In float32, rows of the sizes' tokens and of 4."""
    model = packed(adapted(sizes, LORA, sizes.rows), "float32")
    found = []
    for tokens, goal in ((sizes.tokens, 1.15), (4, 1.75)):
        rows = batch(sizes, tokens, sizes.rows)
        against = [Rival("peft, adapter_names", peft_batch(sizes, rows), goal)]
        if tokens == sizes.tokens:
            against.append(Rival("bare base, torch float32", bare(sizes, rows), 1.0))
        name = f"{sizes.rows} tasks mixed, LoRA r=8"
        found.append(Case(name, forward(model, rows), against, f"{sizes.rows} x {tokens}"))
    return found


@functools.lru_cache(maxsize=1)
def peft_model(sizes: Sizes, tasks: int) -> Any:
    """The same LoRAs in peft."""
    from peft import LoraConfig, get_peft_model

    def config() -> Any:
        return LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=False)

    model: Any = get_peft_model(bert(sizes, 512), config(), adapter_name="t0")
    for task in range(1, tasks):
        model.add_adapter(f"t{task}", config())
    return model.eval()


def peft_batch(sizes: Sizes, rows: dict[str, Any]) -> Callable[[], None] | str:
    """peft's forward of the same mixed batch, or why it is not measured."""
    try:
        model = peft_model(sizes, sizes.rows)
    except ImportError as error:
        return f"not measured: {error}"
    return _quiet(lambda: model(input_ids=rows["input_ids"], adapter_names=rows["task_ids"]))


def bare(sizes: Sizes, rows: dict[str, Any]) -> Callable[[], None]:
    model = bert(sizes)
    return _quiet(lambda: model(input_ids=rows["input_ids"]))


def forward(model: Any, rows: dict[str, Any]) -> Callable[[], None]:
    return _quiet(lambda: model(**rows))


def _quiet(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        import torch

        with torch.inference_mode():
            call()

    return run
