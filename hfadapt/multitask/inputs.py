"""What a call of a multi-task model is given: tensors, of which the first says how many rows there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import TaskError

__all__ = ["first_input"]

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
    for name, value in {**inputs, **others}.items():
        if value is not None and (not isinstance(value, Tensor) or not value.dim()):
            got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
            raise TaskError(f"bad {name}", where=where, got=got, allowed="a tensor with a row for each text")
    given = [name for name in MAIN_INPUTS if inputs.get(name) is not None]
    if not given or {"input_ids", "inputs_embeds"} <= set(given):
        allowed = f"one of {', '.join(MAIN_INPUTS)}"
        raise TaskError("no main input, or two", where=where, got=", ".join(given) or "none", allowed=allowed)
    found = inputs[given[0]]
    if given[0] == "input_ids" and found.dim() != 2:
        raise TaskError("bad input_ids", where=where, got=f"a tensor of shape {list(found.shape)}", allowed="[B, T]")
    return found
