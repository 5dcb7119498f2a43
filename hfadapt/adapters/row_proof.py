"""Which axis of what a module reads is the batch's, tried on the inputs of a call: the first, the second, or none.

A map says it of the modules it names. Of others it is not known: experts read the tokens that were sent to them, image
towers the images of all rows one behind the other, position tables no rows at all. So the base runs twice, and once
with another first row: where the rows of a module are those of the batch, that row and no other is another one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architecture.modes import evaluating
from ..routing.choice import Block, Choice
from ..runtime.call import cache_in
from ..runtime.leaf_hooks import INPUTS, tensor_batch_size

if TYPE_CHECKING:
    from ..runtime.attachment import Attachment
    from ..runtime.slot import Slot

__all__ = ["prove_rows"]

# What may come in other numbers than rows beside words: the images of a batch are those of all its rows together.
_MEDIA = re.compile(r"(pixel|image|video|audio|speech|input_features|input_values).*")
_TOLERANCE = 1e-5


@dataclass
class _Reads:
    """What one module read in one pass: the shape of each tensor, and two numbers for each row of the batch.

    Attributes:
        rows: By the first axis; None where it cannot be the batch's.
        columns: By the second of three.
    """

    shapes: list[torch.Size] = field(default_factory=list)
    rows: list[Tensor | None] = field(default_factory=list)
    columns: list[Tensor | None] = field(default_factory=list)


def prove_rows(model: nn.Module, state: Attachment, slots: Mapping[str, Slot], args: tuple, kwargs: dict) -> None:
    """Find out of each slot whether the rows of its module are those of the batch, and note it in ``slot.by_row``.

    Where they lie on the second axis, ``slot.row_axis`` says so.

    A slot whose module does not run stays as it was.

    Args:
        model: The adapted model.
        state: What is attached to it.
        slots: The slots in question, by the path of their module.
        args, kwargs: Of a call with two rows or more.
    """
    found = tensor_batch_size(args, kwargs)
    if found is None or found[0] < 2:
        return
    size = found[0]
    call: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    tensors = [key for key, value in call.items() if isinstance(value, Tensor)]
    main = next((key for key in INPUTS if key in tensors), tensors[0])
    # Tokens as one list are those of all rows one behind the other, or those that were sent to an expert.
    count = call[main].shape[1] if call[main].dim() == 2 else None
    # Where words stand for images, a row may have any number of them; elsewhere there is one a row.
    placed = any(name.endswith(("token_id", "token_index")) and _MEDIA.match(name) for name in _fields(model))
    media = {key for key in call if placed and key != main and isinstance(key, str) and _MEDIA.fullmatch(key)}
    words = {key for key in call if key not in media}

    def reads(changed: set[Any], rows: int = size, plain: bool = False) -> dict[str, _Reads]:
        given = {key: _part(value, size, rows) for key, value in call.items()}
        given = {
            key: _other_first_row(value, rows, not plain and key == main) if key in changed else value
            for key, value in given.items()
        }
        return _read(model, state, slots, given, len(args), rows, count)

    stock = reads(set())
    try:
        other = reads(words)
    except Exception:  # some heads look for the end of the text in every row
        other = reads(words, plain=True)
    constant = []
    for path, slot in slots.items():
        if not stock[path].shapes:
            continue
        slot.by_row = _first_row_moves(stock[path], other[path])
        if slot.by_row:
            slot.row_axis = 0
        # On the second axis a convolution has its channels, which it mixes.
        second = not slot.side("convolution") and not any(delta.site.window for delta in slot.side("output"))
        if second and not slot.by_row and _first_row_moves(stock[path], other[path], columns=True):
            slot.by_row, slot.row_axis = True, 1
        if slot.by_row is False and _nothing_moves(stock[path], other[path]) and _rows_alike(stock[path]):
            constant.append(path)
    if not constant:
        return
    # What the model itself repeats for every row (learned queries) is alike in all rows, and as many as they are.
    moved, fewer = reads(set(call)), reads(set(), size - 1)
    for path in constant:
        still = _nothing_moves(stock[path], moved[path])
        slots[path].by_row = still and _as_many(stock[path], fewer[path], size)


def _read(
    model: nn.Module,
    state: Attachment,
    slots: Mapping[str, Slot],
    given: dict[Any, Any],
    positional: int,
    rows: int,
    count: int | None,
) -> dict[str, _Reads]:
    """Run the base and return what the modules of the slots read."""
    found = {path: _Reads() for path in slots}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(_note(found[path], rows, count), with_kwargs=True)
        for path in slots
    ]
    given = {key: copy.deepcopy(value) if cache_in(value) is not None else value for key, value in given.items()}
    args = tuple(given[place] for place in range(positional))
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]), Block(state, Choice(base=True)):
            torch.manual_seed(0)
            model(*args, **{key: value for key, value in given.items() if isinstance(key, str)})
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _fields(model: nn.Module) -> Iterator[str]:
    """The names of what a config says, and of what is not None there."""
    config = getattr(model, "config", None)
    return (name for name, value in getattr(config, "__dict__", {}).items() if value is not None)


def _note(reads: _Reads, rows: int, count: int | None) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if tensor is None:
            return
        reads.shapes.append(tensor.shape)
        ids = not tensor.is_floating_point()  # which have no axis of sizes
        second = tensor.dim() + ids == 3 and tensor.shape[1] == rows
        reads.columns.append(_two_numbers(tensor.detach().transpose(0, 1), rows) if second else None)
        size = tensor.shape[0]
        listed = tensor.dim() + ids == 2 and size not in (rows, rows * (count or 1))
        if tensor.dim() + ids < 2 or size == 0 or size % rows or (listed and (ids or count is not None)):
            reads.rows.append(None)
            return
        reads.rows.append(_two_numbers(tensor.detach(), rows))

    return hook


def _two_numbers(tensor: Tensor, rows: int) -> Tensor:
    """A weighted sum of each row's numbers, and the sum of their sizes."""
    each = tensor.reshape(rows, -1).double()
    weights = torch.linspace(0.5, 1.5, each.shape[1], dtype=torch.float64, device=each.device)
    return torch.stack([each @ weights, each.abs().sum(1)], 1)


def _first_row_moves(one: _Reads, other: _Reads, columns: bool = False) -> bool:
    """Whether the first row of a module's input differs between two passes, in every call of it, and no other does."""
    if one.shapes != other.shapes:
        return False
    pairs = zip(one.columns, other.columns, strict=True) if columns else zip(one.rows, other.rows, strict=True)
    return all(a is not None and b is not None and _apart(a[:1], b[:1]) and not _apart(a[1:], b[1:]) for a, b in pairs)


def _nothing_moves(one: _Reads, other: _Reads) -> bool:
    return one.shapes == other.shapes and all(
        a is not None and b is not None and not _apart(a, b) for a, b in zip(one.rows, other.rows, strict=True)
    )


def _rows_alike(reads: _Reads) -> bool:
    return all(rows is not None and not _apart(rows[1:], rows[:1].expand_as(rows[1:])) for rows in reads.rows)


def _as_many(whole: _Reads, fewer: _Reads, size: int) -> bool:
    """Whether a module read one row less of the same kind when the batch had one row less."""
    return len(whole.shapes) == len(fewer.shapes) and all(
        b[0] * size == a[0] * (size - 1) and a[1:] == b[1:] for a, b in zip(whole.shapes, fewer.shapes, strict=True)
    )


def _apart(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() > _TOLERANCE * (1e-6 + one.abs() + other.abs())).any())


def _tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to the tensors in an argument, also to those in a tuple, a list, a map or a model's output."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_tensors(one, change) for one in value)
    if isinstance(value, Mapping):
        made = {key: _tensors(one, change) for key, one in value.items()}
        return made if type(value) is dict else type(value)(**made)
    return value


def _part(value: Any, size: int, rows: int) -> Any:
    """The first rows of whatever has as many as the batch."""
    if rows == size:
        return value
    return _tensors(value, lambda t: t[:rows] if t.dim() and t.shape[0] == size else t)


def _other_first_row(value: Any, rows: int, main: bool) -> Any:
    """A copy of an argument whose first row is its second: a valid one, whatever the argument means.

    Token ids are the first of that row again and again, so that experts are sent other numbers of them.
    """

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != rows:
            return tensor
        made = tensor.clone()
        made[0] = tensor[0].flip(-1) if tensor.dim() > 1 and torch.equal(tensor[0], tensor[1]) else tensor[1]
        if main and tensor.dim() > 1 and not tensor.is_floating_point():
            made[0] = made[0, ..., :1].clone()
        return made

    return _tensors(value, change)


def slots_to_prove(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Yield the slots of which it is not known whether their rows are the batch's."""
    from ..runtime.attachment import slots_of

    for path, slot in slots_of(model):
        if slot.by_row is None:
            yield path, slot
