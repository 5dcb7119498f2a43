"""Fits heads to a base: whether it may have any, its width, and how its tokens become one vector."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from ..adapters.attach import check_model
from ..errors import TaskError
from ..runtime.attachment import find_attachment
from .heads.base import Pooling

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .task import Task

__all__ = ["hidden_size", "require_fresh", "settle_pooling"]


def require_fresh(base: PreTrainedModel) -> None:
    """Refuse a base that a multi-task model cannot be built on.

    Raises:
        AttachError: it is no model.
        TaskError: it has adapters.
    """
    check_model(base)
    found = find_attachment(base)
    if found is not None:
        raise TaskError(
            "the base has adapters already",
            where="MultiTaskModel.from_base",
            got=", ".join(found.names),
            allowed="a base without adapters",
            try_="hfadapt.detach(base) first, or pass a fresh base",
        )


def hidden_size(base: PreTrainedModel) -> int:
    """Return D, the width of the base's last hidden state.

    Raises:
        TaskError: its config does not say.
    """
    config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    raise TaskError(
        "the base's hidden size is not known",
        where=type(base).__name__,
        got=type(base.config).__name__,
        allowed="hidden_size, d_model, n_embd or dim, a whole number",
        try_="base.config.hidden_size = D, the width of the last hidden state",
    )


def settle_pooling(task: Task, base: PreTrainedModel) -> Pooling:
    """Return the pooling of a task's head on this base, never ``auto``.

    Raises:
        TaskError: the head asks for a pooler that the base does not have.
    """
    pooling = task.head.pooling
    if pooling == "pooler":
        inner = getattr(base, base.base_model_prefix, base)
        if getattr(inner, "pooler", None) is None:
            raise TaskError(
                "the head asks for pooling='pooler', but the base has no pooler",
                where=f"task {task.name!r}",
                got=type(base).__name__,
                allowed="cls, mean, last, auto",
                try_="pooling='cls' or pooling='mean'",
            )
    if pooling != "auto":
        return pooling
    attached = find_attachment(base)
    config = base.config
    mapped = attached is not None and bool(attached.arch.stacks)
    causal = attached.arch.stacks[0].causal if attached is not None and mapped else _looks_causal(config)
    # an encoder taken out of an encoder-decoder keeps its config, and has no decoder
    decodes = config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(base.forward).parameters
    return "last" if causal or decodes else "mean"


def _looks_causal(config: PretrainedConfig) -> bool:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
