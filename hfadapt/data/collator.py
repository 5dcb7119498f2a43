"""From rows of any task to one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..multitask.heads import IGNORE
from ..multitask.heads.span import WINDOW
from .arrays import ROLES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MultiTaskCollator"]


class MultiTaskCollator:
    """Pads texts and labels and adds ``task_ids``.

    Labels of all tasks share one float32 matrix padded with -100 (the default collator of transformers would turn a
    regression label into an integer when the first row is a class). A single task keeps the shape and dtype that stock
    models expect, so that the same data train a model without ``MultiTaskModel``.

    Args:
        places: ``label_place`` of each task's head, by task id; labels of tokens move with left padding.
        tokenizer: Gives the padding token and side; may be set later, before the first batch.
        label_form: ``matrix``, or for a single task ``class`` (long [B]) or ``number`` (float [B]).
        pad_to_multiple_of: Round widths up, for tensor cores and compiled models.
    """

    def __init__(
        self,
        places: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        label_form: str = "matrix",
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.places = tuple(places)
        self.tokenizer = tokenizer
        self.label_form = label_form
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch of some rows of ``TaskMixture`` data sets."""
        batch: dict[str, Tensor] = {}
        for role in ROLES:
            if rows and role in rows[0]:
                batch[role] = torch.from_numpy(np.stack([row[role] for row in rows]))
                batch["task_ids"] = torch.tensor([row["task_ids"] for row in rows], dtype=torch.long)
                batch["labels"] = self._label_matrix([row["labels"] for row in rows])
                return batch
        pad = self._pad_id()
        batch["input_ids"], batch["attention_mask"] = self._pad([row["input_ids"] for row in rows], pad)
        if any("token_type_ids" in row for row in rows):
            types = [row.get("token_type_ids", np.zeros_like(row["input_ids"])) for row in rows]
            batch["token_type_ids"], _ = self._pad(types, self._known().pad_token_type_id)
        if any("pair_input_ids" in row for row in rows):
            # rows without a second text get one real padding token, or attention would have nothing to look at
            pairs = [row.get("pair_input_ids", np.array([pad], np.int32)) for row in rows]
            batch["pair_input_ids"], batch["pair_attention_mask"] = self._pad(pairs, pad)
        batch["task_ids"] = torch.tensor([row["task_ids"] for row in rows], dtype=torch.long)
        batch["labels"] = self._labels(rows, batch["input_ids"].shape[1])
        return batch

    def _known(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise DataError(
                "the collator has no tokenizer yet",
                where="TaskMixture.collator",
                got="tokenizer=None",
                allowed="a tokenizer, before the first batch of texts",
                try_="TaskMixture(tasks, tokenizer=...), or give mix.callbacks to the Trainer",
            )
        return self.tokenizer

    def _pad_id(self) -> int:
        # models without a padding token (GPT-2) never see it: the attention mask covers it
        for token in (self._known().pad_token_id, self._known().eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    def width_for(self, longest: int) -> int:
        """Return the width of a batch whose longest text has so many tokens."""
        step = self.pad_to_multiple_of or 1
        return -(-longest // step) * step

    def _pad(self, rows: list[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
        width = self.width_for(max(map(len, rows)))
        ids = np.full((len(rows), width), value, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        left = self._known().padding_side == "left"
        for index, row in enumerate(rows):
            place = slice(width - len(row), None) if left else slice(0, len(row))
            ids[index, place] = row
            mask[index, place] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _labels(self, rows: Sequence[dict[str, Any]], tokens: int) -> Tensor:
        labels = [row["labels"] for row in rows]
        if self.label_form == "matrix" and self._known().padding_side == "left":
            labels = [self._moved(row, tokens - len(row["input_ids"])) for row in rows]
        return self._label_matrix(labels)

    def _label_matrix(self, labels: list[np.ndarray]) -> Tensor:
        if self.label_form == "class":
            return torch.tensor([int(label[0]) for label in labels], dtype=torch.long)
        if self.label_form == "number":
            return torch.tensor([float(label[0]) for label in labels], dtype=torch.float32)
        matrix = np.full((len(labels), max(map(len, labels))), IGNORE, np.float32)
        for index, label in enumerate(labels):
            matrix[index, : len(label)] = label
        return torch.from_numpy(matrix)

    def _moved(self, row: dict[str, Any], shift: int) -> np.ndarray:
        """Move labels that count tokens by the padding that stands before the row."""
        label = row["labels"]
        place = self.places[row["task_ids"]]
        if place == "position":
            moves = (label >= 0) & (np.arange(len(label)) < WINDOW.index("example"))
            return np.where(moves, label + shift, label)
        if place == "token":
            return np.concatenate([np.full(shift, IGNORE, np.float32), label])
        return label
