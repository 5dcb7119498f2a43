"""Text that a base with a language-model head writes after a prompt, each with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.tokenizer import sole_use
from ..errors import DataError
from ..multitask.generate import can_write
from ..multitask.heads import OwnHead
from ..runtime.attachment import find_attachment
from .refused import not_finite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..multitask.task import Task

__all__ = ["prompt_of", "write", "writes"]

_PROBED_TOKENS = 4


def writes(task: Task, model: Any) -> bool:
    """Say whether the task's answer is text that its base writes.

    Args:
        task: Of the model.
        model: A ``MultiTaskModel``.
    """
    return isinstance(task.head, OwnHead) and can_write(getattr(model, "base", None))


def prompt_of(
    task: Task, tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None, limit: int, decodes: bool
) -> dict[str, np.ndarray]:
    """Return the row of a prompt; a long one loses its beginning.

    Args:
        task: Whose prompt it is.
        tokenizer: Of the base.
        text: The prompt.
        pair: A second text behind it, or None.
        limit: Tokens that leave room for what is written.
        decodes: The base goes on behind the prompt; an encoder-decoder reads it.

    Raises:
        DataError: the prompt has no tokens, or no room.
    """
    with sole_use(tokenizer):
        ids = tokenizer(text, pair, verbose=False)["input_ids"]
    # A tokenizer that ends every text would have a decoder go on behind the end.
    if decodes and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if limit < 1 or not ids:
        raise DataError(
            "no room for a prompt",
            where=f"task {task.name!r}",
            got=f"{len(ids)} tokens",
            allowed=limit,
            try_="less to write, which leaves the prompt more room" if ids else "a prompt of one word or more",
        )
    return {"input_ids": np.asarray(ids[-limit:], np.int32)}


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    adapters: Sequence[str],
    width: int,
    max_new_tokens: int,
    *,
    probe: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write behind prompts, the likeliest token each time.

    Args:
        model: A ``MultiTaskModel`` on a base that writes.
        tokenizer: Of the base.
        rows: With ``input_ids``.
        adapters: The adapter of each row, or a composition's name.
        width: To which prompts are padded, at the left for a decoder.
        max_new_tokens: At most.
        probe: Return the logits of a few tokens, whatever they are, in place of the tokens.

    Returns:
        For each row the tokens that were written up to the first that ends a text, or the logits; and an empty array.
    """
    base = model.base
    two = bool(base.config.is_encoder_decoder)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
    ids, mask = np.full((len(rows), width), pad, np.int64), np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        tokens = row["input_ids"]
        place = slice(0, len(tokens)) if two else slice(width - len(tokens), None)
        ids[index, place], mask[index, place] = tokens, 1
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "pad_token_id": pad}
    options["max_new_tokens"] = few = min(max_new_tokens, _PROBED_TOKENS) if probe else max_new_tokens
    if probe:
        options |= {"min_new_tokens": few, "output_logits": True, "return_dict_in_generate": True}
    if find_attachment(base) is not None:
        options["task_ids"] = list(adapters)
    place = next(base.parameters()).device
    inputs = {"input_ids": torch.from_numpy(ids).to(place), "attention_mask": torch.from_numpy(mask).to(place)}
    made = base.generate(**inputs, **options, logits_processor=_only_numbers(adapters))
    nothing = np.zeros(0, np.float32)
    if probe:
        logits = torch.stack(made.logits, 1).float().cpu().numpy()
        return [(one, nothing) for one in logits]
    tokens = made.cpu().numpy()
    tokens = tokens[:, 1:] if two else tokens[:, width:]
    return [(_up_to_end(one, base.generation_config.eos_token_id), nothing) for one in tokens]


def _only_numbers(names: Sequence[str]) -> Any:
    """Raise where a row of these names has no numbers for its next token: the likeliest would be chance."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class OnlyNumbers(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            # minus infinity stands for what may not be written
            bad = (scores.isnan() | scores.isposinf()).any(-1)
            if bad.any():
                raise not_finite(names[int(bad.nonzero()[0])])
            return scores

    return LogitsProcessorList([OnlyNumbers()])


def _up_to_end(tokens: np.ndarray, ends: Any) -> np.ndarray:
    """The tokens before the first that ends a text: rows of a batch that are done are filled up."""
    found = np.flatnonzero(np.isin(tokens, [] if ends is None else ends))
    return tokens[: found[0]] if len(found) else tokens
