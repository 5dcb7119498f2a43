"""What the options of the PALs paper's script mean: its config file in terms of our configs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hfadapt import MethodConfig

from ..bottleneck import Bottleneck
from ..lhuc import LHUC
from ..low_rank import LowRank
from ..top import TopAttention, TopLayer
from .config import PAL

__all__ = ["BERT_FIELDS", "OPTIONS", "adapted_layers", "configs_of"]

#: Fields of the script's config that are BERT's, and the kind of their values.
BERT_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "vocab_size": int,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "intermediate_size": int,
    "hidden_act": str,
    "hidden_dropout_prob": (int, float),
    "attention_probs_dropout_prob": (int, float),
    "max_position_embeddings": int,
    "type_vocab_size": int,
    "initializer_range": (int, float),
}
#: Those that say what a task has, and what stands for one that is left out.
OPTIONS: Mapping[str, Any] = {
    "pals": False,
    "mult": False,
    "top": False,
    "lhuc": False,
    "houlsby": False,
    "bert_lay_top": False,
    "extra_dim": None,
    "hidden_size_aug": 204,
}
_IN_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(?:(?:attention\.)?output\.)?multi_(?:layers|lhuc)\.")


def adapted_layers(keys: Iterable[str]) -> tuple[int, ...]:
    """Return the layers that have weights of tasks: which they are stands in the script's code and in no option."""
    return tuple(sorted({int(match[1]) for key in keys if (match := _IN_LAYER.match(key))}))


def configs_of(options: Mapping[str, Any], layers: tuple[int, ...]) -> tuple[MethodConfig, ...]:
    """Return what a task's adapter is: the forms of the published code, which are not the paper's in all.

    It has gelu behind a PAL's decoder and inside a low-rank layer, six heads in a PAL and twelve on top.

    Args:
        options: Values for all of `OPTIONS`.
        layers: Those that have weights of tasks.
    """
    size, lhuc = options["hidden_size_aug"], bool(options["lhuc"])
    code: dict[str, Any] = {"activation": "gelu", "layers": layers}
    if options["top"]:
        return (TopLayer(),) if options["bert_lay_top"] else (TopAttention(size=size, num_heads=12),)
    low = options["extra_dim"] or size  # of low-rank functions, not of PALs
    if options["houlsby"]:
        attention = Bottleneck(low, on=("attention",), non_linearity="gelu", layers=layers)
        if options["pals"]:
            return attention, PAL(size, num_heads=6, position="ffn", lhuc=lhuc, **code)
        return attention, Bottleneck(low, on=("ffn",), is_parallel=True, non_linearity="gelu", layers=layers)
    if options["pals"]:
        return (PAL(size, num_heads=6, lhuc=lhuc, **code),)
    if options["mult"]:
        return (LowRank(low, lhuc=lhuc, **code),)
    return (LHUC(layers=layers),) if lhuc else ()
