"""The BERT that benchmarks make, with random weights: what is timed asks for no file and no network."""

from __future__ import annotations

from typing import Any

__all__ = ["bert_config"]


def bert_config(layers: int, hidden: int, positions: int = 512) -> Any:
    """The configuration of a BERT of any size.

    Args:
        layers: Of the model.
        hidden: Its width; heads of 64, feed-forward four times.
        positions: Tokens of the longest row that it reads.
    """
    from transformers import BertConfig

    return BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
    )
