"""What peft's folders of every kind have in common: the task, and the modules that are saved whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfadapt import attachment
from hfadapt.adapters.formats import head_modules, own_tensors
from hfadapt.adapters.formats import refuse_own as refuse_own_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["refuse_own_folder", "task_type_of", "whole_modules"]

_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def task_type_of(model: PreTrainedModel) -> str | None:
    """Return peft's word for what a model's class is for; None where it has none."""
    kind = type(model).__name__
    return next((task for end, task in _TASK_TYPES.items() if kind.endswith(end)), None)


def whole_modules(model: PreTrainedModel, name: str) -> tuple[list[str], dict[str, Tensor]]:
    """Return the paths of modules that an adapter trained whole, and their tensors by the base's names for them."""
    adapter = attachment(model).require(name)
    whole = [*adapter.heads, *adapter.modules]
    tensors = {f"{path}.{key}": value for path, key, value in own_tensors(model, name)}
    for path, head in head_modules(model).items():  # trained in place, together with the base
        if path not in adapter.heads and any(p.requires_grad for key, p in head.named_parameters() if _is_base(key)):
            whole.append(path)
            tensors |= {f"{path}.{key}": value for key, value in head.state_dict().items() if _is_base(key)}
    return whole, tensors


def _is_base(key: str) -> bool:
    return ".hfadapt." not in f".{key}"
