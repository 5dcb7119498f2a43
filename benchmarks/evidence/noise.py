"""Noise on the words of test texts: each is replaced, with a probability, by a word of the same column's other rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

# One draw for all arms and seeds of training, so that every arm reads the same texts.
SEED = 20191108


def noisy_words(texts: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """The texts with about ``share`` of their words replaced, none added and none left out.

    Args:
        texts: Of one column; their words, each as often as it occurs, are what is drawn from.
        share: Probability for each word, 0 to 1.
        rng: Draws.
    """
    words = [word for text in texts for word in text.split()]
    return [" ".join(rng.choice(words) if rng.random() < share else word for word in text.split()) for text in texts]


def noisy_task(task: Any, share: float) -> Any:
    """The task with noise in the text columns of its test split; labels and the other splits stay."""
    from hfadapt.data.sources import load_splits

    rows = dict(load_splits(task))
    test = rows["test"]
    for column in (task.column("text"), task.column("text_pair")):
        if column in test.column_names:
            rng = random.Random(f"{SEED} {task.name} {column} {share}")
            texts = noisy_words(test[column], share, rng)
            test = test.remove_columns(column).add_column(column, texts)
    return dataclasses.replace(task, data={**rows, "test": test})
