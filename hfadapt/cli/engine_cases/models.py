"""The models of the cases: BERTs with random weights, adapted to some tasks, and engines on them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..bench_bert import bert_config
from .case import Sizes

if TYPE_CHECKING:
    from ...inference.engine import Engine

__all__ = ["BOTTLENECK", "LORA", "adapted", "batch", "bert", "engine_of", "packed"]

LORA = {"method": "lora", "r": 8, "init": "normal"}
BOTTLENECK = {"method": "bottleneck", "reduction_factor": 16}


def bert(sizes: Sizes, tokens: int | None = None) -> Any:
    """A BERT, frozen, that reads rows of up to ``tokens`` tokens (those of the sizes by default)."""
    # Random numbers take longer than a copy of them.
    return copy.deepcopy(_bert(sizes.layers, sizes.hidden, max(64, tokens or sizes.tokens)))


@functools.lru_cache(maxsize=1)
def _bert(layers: int, hidden: int, tokens: int) -> Any:
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    config = bert_config(layers, hidden, tokens)
    return BertModel(config).eval().requires_grad_(False)


def adapted(sizes: Sizes, method: Any, tasks: int) -> Any:
    """A BERT with an adapter for each of ``tasks`` tasks, t0 and so on."""
    import hfadapt

    model = bert(sizes)
    hfadapt.attach(model, method, names=[f"t{number}" for number in range(tasks)], verify=False)
    return model.eval().requires_grad_(False)


def packed(model: Any, dtype: str) -> Any:
    """The same model, its frozen linears packed."""
    import hfadapt

    return hfadapt.pack(model, dtype)


def batch(sizes: Sizes, tokens: int, tasks: int) -> dict[str, Any]:
    """Rows of all tasks in turn, as many as the sizes say."""
    import torch

    ids = torch.randint(4, 1000, (sizes.rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "task_ids": [f"t{row % tasks}" for row in range(sizes.rows)]}


def engine_of(base: Any, tasks: Sequence[str], dtype: str, tokenizer: Any) -> Engine:
    """An engine of a base that has an adapter for each task, or whose first call gives it some."""
    from ...adapters.folder_config import HFAdaptConfig
    from ...inference.engine import Engine
    from ...multitask.heads import Classification
    from ...multitask.model import MultiTaskModel
    from ...multitask.task import Task

    made = [Task(name, Classification(2)) for name in tasks]
    config = HFAdaptConfig(
        base_model_name_or_path=None,
        tasks=[task.to_dict() for task in made],
        base_class=type(base).__name__,
        train_base=False,
    )
    return Engine(MultiTaskModel(config, base, made), tokenizer, dtype=dtype, token_budget=1 << 15)
