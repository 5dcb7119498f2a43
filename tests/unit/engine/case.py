"""Tasks of every kind, and requests of many lengths, for the tests of engines and servers."""

from __future__ import annotations

from pathlib import Path

import torch

from hfadapt import Classification, MultiLabel, MultiTaskModel, Regression, Span, Task, TokenClassification
from hfadapt.testing.conformance import randomize

TASKS = [
    Task("topic", Classification(2), label_names=("low", "high")),
    Task("kind", Classification(5, inner_size=8)),
    Task("score", Regression(0.0, 5.0)),
    Task("labels", MultiLabel(4)),
    Task("tags", TokenClassification(3), label_names=("O", "B", "I")),
    Task("same", Classification(2), pair="separate"),
    Task("span", Span()),
]
PAIRED = {"same": "w7 w8 w9", "span": "w2 w3 w4 w5"}
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "data"


def text(words, start=0):
    return " ".join(f"w{(start + 7 * i) % 95}" for i in range(words))


# All lengths up to the 64 tokens that the model reads, those that fill a padded length among them.
REQUESTS = [
    (text(words, 3 * number), task.name, PAIRED.get(task.name))
    for number, words in enumerate((3, 14, 30, 61, 9))
    for task in TASKS
    if not (task.name in PAIRED and words > 40)
]


def saved(base_folder, folder, tasks, method, seed=1):
    model = MultiTaskModel.from_pretrained(str(base_folder), tasks=tasks, method=method)
    torch.manual_seed(seed)
    randomize(model.base)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def ask(engine, requests):
    return engine.predict(*map(list, zip(*requests, strict=True)))
