"""Padded tokens for each real one in training batches of the demo's tasks, and what they cost in time and in scores.

    python tools/bench_padding.py --before ../old-checkout --out benchmarks/padding

Tokens are counted, exactly; every checkout is counted by this same file, in a process of its own. An epoch's time is
that of steps spread evenly over it, in mixed batches, those of random order (``bucket_steps=1``, as mixed batches were
before they were sorted) and of the default in turn; ratios of such times mean something on a busy machine too. Scores
are the macro averages on the test splits after the demo's fast training in mixed batches of either order, by seed: each
is kept as it ends, and a run that was cut off goes on with those that it lacks. Each part (``--only``) keeps what the
file says of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_path import machine

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "examples" / "minisuite-pals.yaml"
EPOCHS = 3
PARTS = ("count", "time", "scores")
# Steps whose rows are sorted by length together.
ORDERS = {"random": 1, "sorted": 128}


def mixture(batch: Any, pair: str, size: int, **options: Any) -> Any:
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
    mixes = {name: mixture("mixed", "separate", size, bucket_steps=among) for name, among in ORDERS.items()}
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


def macro(order: str, seed: int) -> float:
    """The macro average on the test splits, in per cent, of the demo's fast training in mixed batches."""
    from hfadapt.recipes.config import load_recipe
    from hfadapt.recipes.run import Run

    with tempfile.TemporaryDirectory() as folder:
        changes = ["mixing.batch=mixed", f"mixing.bucket_steps={ORDERS[order]}", f"seed={seed}", f"output={folder}"]
        return round(100 * Run(load_recipe(RECIPE, changes, fast=True)).train_adapted().result.macro, 2)


def scores(found: dict[str, dict[str, float]], seeds: list[int], keep: Callable[[dict[str, Any]], None]) -> None:
    """Train with the seeds that ``found``, order to seed to macro average, lacks, and keep each as it ends."""
    found = {order: {**found.get(order, {})} for order in ORDERS}
    for seed in seeds:
        for order in ORDERS:
            if str(seed) not in found[order]:
                found[order][str(seed)] = macro(order, seed)
                keep(_summed(found))
    keep(_summed(found))


def _summed(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    both = sorted(found["random"].keys() & found["sorted"].keys(), key=int)
    told: dict[str, Any] = {"macro, by seed": found}
    if both:
        gains = [found["sorted"][seed] - found["random"][seed] for seed in both]
        told["sorted less random, by seed"] = [round(one, 2) for one in gains]
        told["mean"] = round(statistics.mean(gains), 2)
    return told


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
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each order")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings that are scored")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure; all")
    parser.add_argument("--out", type=Path, help="folder for padding.json")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count(options.rows)))
        return
    file = None if options.out is None else options.out / "padding.json"
    result: dict[str, Any] = json.loads(file.read_text("utf-8")) if file is not None and file.is_file() else {}
    result["tasks"] = "wn_relation, sms_spam, tweet_valence"

    def keep(part: str, found: dict[str, Any]) -> None:
        result[part] = {"machine": machine(), **found}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")

    if "count" in options.only:
        found: dict[str, Any] = {"rows": options.rows}
        if options.before is not None:
            found["before"] = measure(options.before.resolve(), options.rows)
        keep("padded tokens a real one", {**found, "now": measure(ROOT, options.rows)})
    if "time" in options.only:
        load = round(os.getloadavg()[0], 1)
        keep("mixed epoch", {"rows": options.rows, "load average": load, **seconds(options.rows, options.steps)})
    if "scores" in options.only:
        before = result.get("scores", {}).get("macro, by seed", {})
        scores(before, options.seeds, lambda found: keep("scores", found))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
