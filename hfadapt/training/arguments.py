"""Which numbers fields of ``transformers.TrainingArguments`` may hold; transformers itself takes most of any sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors.limits import require_number

__all__ = ["RANGES", "require_arguments"]

_COUNT = {"whole": True, "least": 1}
_COUNT_OR_NONE = {**_COUNT, "optional": True}
_NOT_NEGATIVE = {"least": 0}
_EVERY = {"above": 0, "optional": True}

#: Field to what ``require_number`` takes.
RANGES: Mapping[str, Mapping[str, Any]] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": {"above": 0},
    # -1 lets the epochs decide; transformers takes 0 and every negative number for that without a word
    "max_steps": {"whole": True, "least": 1, "also": (-1,)},
    "learning_rate": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "warmup_ratio": {"least": 0, "most": 1, "optional": True},
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": {"least": 0, "below": 1},
    "adam_beta2": {"least": 0, "below": 1},
    "adam_epsilon": {"above": 0},
    "max_grad_norm": {"least": 0, "optional": True},
    "label_smoothing_factor": {"least": 0, "below": 1},
    "neftune_noise_alpha": {"above": 0, "optional": True},
    "torch_empty_cache_steps": _COUNT_OR_NONE,
    "logging_steps": _EVERY,
    "eval_steps": _EVERY,
    "save_steps": _EVERY,
    "eval_delay": {"least": 0, "optional": True},
    "eval_accumulation_steps": _COUNT_OR_NONE,
    "save_total_limit": _COUNT_OR_NONE,
    "seed": {"whole": True, "least": 0},
    "data_seed": {"whole": True, "least": 0, "optional": True},
    "dataloader_num_workers": {"whole": True, "least": 0},
    "dataloader_prefetch_factor": _COUNT_OR_NONE,
    "ddp_bucket_cap_mb": _COUNT_OR_NONE,
    "ddp_timeout": _COUNT,
}


def require_arguments(values: Mapping[str, Any], where: str = "TrainingArguments") -> None:
    """Refuse numbers that no training can mean; fields that are not given, and those of other kinds, are passed over.

    Args:
        values: Field of ``TrainingArguments`` to its value.
        where: For the message.

    Raises:
        ConfigError: a rate is negative, a count of steps is 0, a number is infinite or NaN.
    """
    for name, range_ in RANGES.items():
        if name in values:
            require_number(name, values[name], where=where, **range_)
