"""Padded tokens for each real one in training batches of the demo's tasks, and what they cost in time.

    python tools/bench_padding.py --before ../old-checkout --out benchmarks/padding

Tokens are counted, exactly; every checkout is counted by this same file, in a process of its own. An epoch's time is
that of steps spread evenly over it, in mixed batches, those of random order (``bucket_steps=1``, as mixed batches were
before they were sorted) and of the default in turn; ratios of such times mean something on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_path import machine

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "examples" / "minisuite-pals.yaml"
EPOCHS = 3


def mixture(batch: str, pair: str, size: int, **options: Any) -> Any:
    """The demo's tasks, tokenised, in one form of batches."""
    from hfadapt.adapters.model_source import model_path
    from hfadapt.data import Layout
    from hfadapt.recipes.build import build_tasks
    from hfadapt.recipes.config import load_recipe
    from hfadapt.training import TaskMixture

    recipe = load_recipe(RECIPE, [f"tasks.wn_relation.pair={pair}"])
    tasks = build_tasks(recipe)
    found = TaskMixture(tasks, model_path(recipe.model), strategy=recipe.mixing.strategy, batch=batch, **options)
    return found.plan(Layout(size, epochs=EPOCHS), seed=42)


def widths(mix: Any, epoch: int) -> np.ndarray:
    """Tokens of both texts of every row of an epoch, [rows, 2]; 1 for the text that a batch with pairs makes up."""
    fields = [mix._tables.by_place[task, "train"].fields for task in range(len(mix.tasks))]
    tasks, rows = mix.schedule.index(epoch)
    found = np.zeros((len(tasks), 2), np.int64)
    for task, one in enumerate(fields):
        mine = tasks == task
        for text, name in enumerate(("input_ids", "pair_input_ids")):
            if name in one:
                found[mine, text] = one[name].lengths[rows[mine]]
    return found


def count(size: int) -> dict[str, float]:
    """Padded tokens for each real one, by form."""
    found = {}
    for batch in ("one_task", "mixed"):
        for pair in ("joint", "separate"):
            mix = mixture(batch, pair, size)
            held = real = 0
            for epoch in range(EPOCHS):
                batches = widths(mix, epoch).reshape(-1, size, 2)
                held += int(batches.max(1).sum()) * size
                real += int(batches.sum())
            found[f"{batch}, pairs {pair}"] = round(held / real, 3)
    return found


def seconds(size: int, steps: int) -> dict[str, Any]:
    """Time steps of a mixed epoch in random order and sorted, in turn."""
    import torch
    from transformers import AutoModel

    from hfadapt import MultiTaskModel
    from hfadapt.adapters.model_source import model_path
    from hfadapt.recipes.config import load_recipe

    torch.set_num_threads(2)
    recipe = load_recipe(RECIPE)
    mixes = {"random": mixture("mixed", "separate", size, bucket_steps=1), "sorted": mixture("mixed", "separate", size)}
    torch.manual_seed(0)
    base = AutoModel.from_pretrained(model_path(recipe.model))
    model = MultiTaskModel.from_base(base, mixes["sorted"].tasks, recipe.method).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    total = mixes["sorted"].schedule.steps
    taken = dict.fromkeys(mixes, 0.0)
    for number, step in enumerate([0, *np.linspace(0, total - 1, steps).astype(int).tolist()]):
        for name, mix in mixes.items():
            rows = [mix.train[step * size + row] for row in range(size)]
            start = time.perf_counter()
            model(**mix.collator(rows)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            # the first step warms up
            taken[name] += (time.perf_counter() - start) * (number > 0)
    return {
        "steps of an epoch": total,
        "steps timed of each": steps,
        "seconds an epoch": {name: round(one * total / steps, 1) for name, one in taken.items()},
        "times faster": round(taken["random"] / taken["sorted"], 2),
    }


def measure(checkout: Path, size: int) -> dict[str, float]:
    """Count in one checkout, in a process of its own."""
    paths = os.pathsep.join(str(checkout / part) for part in (".", "kernels", "plugins"))
    command = [sys.executable, __file__, "--count", "--rows", str(size)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout to count in too")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each order; 0 counts only")
    parser.add_argument("--out", type=Path, help="folder for padding.json")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count(options.rows)))
        return
    result: dict[str, Any] = {"machine": machine(), "tasks": "wn_relation, sms_spam, tweet_valence"}
    result["rows"] = options.rows
    if options.before is not None:
        result["padded tokens a real one, before"] = measure(options.before.resolve(), options.rows)
    result["padded tokens a real one"] = measure(ROOT, options.rows)
    if options.steps:
        result["load average"] = round(os.getloadavg()[0], 1)
        result["mixed epoch"] = seconds(options.rows, options.steps)
    text = json.dumps(result, indent=1) + "\n"
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "padding.json").write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
