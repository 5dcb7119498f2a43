"""What ``MultiTaskModel`` is configured with, and what it returns."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import ModelOutput

__all__ = ["HFAdaptConfig", "MultiTaskOutput", "is_marked"]


class HFAdaptConfig(PretrainedConfig):
    """What ``config.json`` of a saved ``MultiTaskModel`` says, so that ``AutoModel`` knows what the folder holds.

    Args:
        base_model_name_or_path: The pretrained base.
        tasks: ``Task.to_dict`` of each task, in the order of their ids.
        base_class: Class of the base in transformers.
        train_base: Whether the base trains (and is saved) too.
    """

    model_type = "hfadapt"

    def __init__(
        self,
        base_model_name_or_path: str | None = None,
        tasks: list[dict[str, Any]] | None = None,
        base_class: str | None = None,
        train_base: bool = False,
        **kwargs: Any,
    ) -> None:
        self.base_model_name_or_path = base_model_name_or_path
        self.tasks = tasks or []
        self.base_class = base_class
        self.train_base = train_base
        super().__init__(**kwargs)


def is_marked(folder: str | os.PathLike[str]) -> bool:
    """Say whether the ``config.json`` in ``folder`` is ours."""
    path = Path(folder) / "config.json"
    try:
        # a named pipe would be waited for
        return path.is_file() and json.loads(path.read_text("utf-8")).get("model_type") == HFAdaptConfig.model_type
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@dataclass
class MultiTaskOutput(ModelOutput):
    """What ``MultiTaskModel`` returns.

    Args:
        loss: Weighted mean over the rows, when labels were given.
        logits: [B, W], W the widest head's outputs a row (token heads: T * C, token-major); -100 past a head's own.
        task_ids: Task of each row, int64 [B].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_ids: Tensor | None = None
