"""What the trainings of these tests have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments


def arguments(folder: Path, *, checkpointing: bool = False, **options: Any) -> TrainingArguments:
    """Return arguments of a short training on the CPU that writes and reports nothing unless ``options`` say so."""
    if checkpointing:
        options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    # ranks that agree on every draw need no help with parameters that have no gradient
    return TrainingArguments(
        str(folder), **{"learning_rate": 1e-2, "ddp_find_unused_parameters": False, **quiet, **options}
    )
