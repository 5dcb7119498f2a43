"""Heads: what turns the base's hidden states into a task's answer, with loss, label checks and decoding."""

from __future__ import annotations

from .base import IGNORE, POOLINGS, Head, HeadFeatures, Pooling, head_from_dict
from .own import OwnHead, flatten_logits
from .pooling import SequenceModule, pair_features, pool
from .sequence import Classification, MultiLabel, Regression
from .span import Span
from .token import TokenClassification, TokenModule

HEADS: dict[str, type[Head]] = {
    cls.kind: cls for cls in (Classification, MultiLabel, Regression, TokenClassification, Span, OwnHead)
}

__all__ = [
    "HEADS",
    "IGNORE",
    "POOLINGS",
    "Classification",
    "Head",
    "HeadFeatures",
    "MultiLabel",
    "OwnHead",
    "Pooling",
    "Regression",
    "SequenceModule",
    "Span",
    "TokenClassification",
    "TokenModule",
    "flatten_logits",
    "head_from_dict",
    "pair_features",
    "pool",
]
