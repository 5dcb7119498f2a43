"""The papers' claims on real data: trains every arm with every seed, and writes ``docs/evidence``.

``make evidence`` runs all, which takes hours; ``PART=pals`` one paper, ``SEEDS="0 1 2 3 4"`` others. What
ran before is kept in ``results/``, a file an arm: an arm whose recipe was changed since is trained anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from .arms import HERE, Arm, read_arms, run_arm
from .pages import all_pages
from .results import RESULTS, read_results


def run(arm: Arm, text: str, seeds: list[int], folder: Path = RESULTS) -> None:
    """Train an arm with the seeds that it lacks, and keep each as it ends."""
    from hfadapt.recipes.results import machine

    file = folder / f"{arm.name}.json"
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if found.get("recipe") != arm.key(text):
        found = {"recipe": arm.key(text), "seeds": {}}
    for seed in seeds:
        if str(seed) in found["seeds"]:
            continue
        print(f"{arm.name}, seed {seed}", flush=True)
        found["seeds"][str(seed)] = result = run_arm(arm, text, seed, lambda line: None)
        found["machine"] = machine()
        whole = file.with_suffix(".writing")
        whole.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        os.replace(whole, file)
        print(f"  macro {result['macro']:.1f} in {result['seconds']:.0f} s", flush=True)


def choose(arms: Mapping[str, Arm], parts: Sequence[str]) -> list[Arm]:
    """The arms that a part names, or that begin with it where it is the name of none; all without parts."""
    names, papers = set(parts) & set(arms), tuple(part for part in parts if part not in arms)
    return [arm for name, arm in arms.items() if not parts or name in names or (papers and name.startswith(papers))]


def main() -> None:
    """Run what was asked for, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="papers or arms: pals, drop, unified, smart, pals.low_rank; all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pages", action="store_true", help="write the pages alone")
    given = parser.parse_args()
    logging.getLogger("hfadapt").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    arms, text = read_arms(), (HERE / "recipe.yaml").read_text("utf-8")
    chosen = choose(arms, given.parts)
    if not chosen:
        parser.error(f"no arm begins with {' or '.join(given.parts)}: {', '.join(arms)}")
    RESULTS.mkdir(exist_ok=True)
    # A seed of every arm before the next seed: what was cut off is of use.
    for seed in [] if given.pages else given.seeds:
        for arm in chosen:
            run(arm, text, [seed])
    for file, page in all_pages(read_results()).items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
