"""What a call of a multi-task model is given: tensors, of which the first says how many rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import TaskError

__all__ = ["MAIN_INPUTS", "first_input", "require_rows"]

#: Any of which may be a base's main input, in the order in which they are looked for.
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features")


def first_input(inputs: Mapping[str, Any], **others: Any) -> Tensor:
    """Return the first main input of a call, whose first dimension counts the rows.

    Args:
        inputs: By name, those that were not given as None.
        others: Likewise; of these none is a main input.

    Raises:
        TaskError: no main input is given, or one in two forms, or what is given is no tensor with a row for each text.
    """
    where = "MultiTaskModel.forward"
    require_rows({**inputs, **others}, where=where)
    given = [name for name in MAIN_INPUTS if inputs.get(name) is not None]
    if not given or {"input_ids", "inputs_embeds"} <= set(given):
        raise TaskError(
            "no main input, or two",
            where=where,
            got=", ".join(given) or "none",
            allowed=f"one of {', '.join(MAIN_INPUTS)}",
            try_="model(**batch) with what the tokenizer or the processor returns",
        )
    return inputs[given[0]]


def require_rows(inputs: Mapping[str, Any], *, where: str) -> None:
    """Raise unless each is a tensor with a row for each text, and tokens a table of whole numbers.

    Args:
        inputs: By name; None for those that were not given.
        where: Whose inputs they are.

    Raises:
        TaskError: one is not.
    """
    for name, value in inputs.items():
        if value is None:
            continue
        tokens = name == "input_ids"
        if not isinstance(value, Tensor) or not value.dim() or (tokens and (value.dim() != 2 or _is_real(value))):
            raise TaskError(
                f"bad {name}",
                where=where,
                got=f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80],
                allowed="an integer tensor [B, T]" if tokens else "a tensor with a row for each text",
                try_='tokenizer(texts, padding=True, return_tensors="pt")' if "ids" in name else "torch.stack(rows)",
            )


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
