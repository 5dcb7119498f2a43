"""Choose the demo's learning rates on the validation splits.

Usage: python tools/tune_demo.py [--full] [ARM ...]

Trains each arm of examples/minisuite-pals.yaml (as ``make demo`` does, or with --full as ``make demo FULL=1``) once for
every learning rate of its grid and prints the macro average on the validation splits. The recipe holds the winners; the
test splits are not read.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hfadapt.recipes.config import load_recipe
from hfadapt.recipes.report.table import to_markdown
from hfadapt.recipes.run import Run

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "minisuite-pals.yaml"
# A head on a frozen encoder has one learning rate, that of the heads.
GRIDS = {
    "adapted": ("training.learning_rate", (1e-3, 2e-3, 4e-3)),
    "frozen_head": ("baselines.frozen_head.head_learning_rate", (1e-2, 3e-2, 1e-1)),
    "full_finetuning": ("baselines.full_finetuning.learning_rate", (3e-5, 1e-4)),
}


def validation_macro(arm: str, setting: str, value: float, *, fast: bool) -> float:
    """The macro average of one arm, trained with one setting."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(RECIPE, [f"{setting}={value}", "score_split=validation", f"output={folder}"], fast=fast)
        run = Run(recipe)
        return (run.train_adapted().result if arm == "adapted" else run.train_baseline(arm)).macro


def main(arguments: list[str]) -> None:
    """Print one row a try."""
    fast = "--full" not in arguments
    arms = [name for name in arguments if name in GRIDS] or list(GRIDS)
    rows = []
    for arm in arms:
        setting, values = GRIDS[arm]
        for value in values:
            rows.append([arm, setting, f"{value:g}", f"{validation_macro(arm, setting, value, fast=fast):.3f}"])
            print(*rows[-1], flush=True)
    print(to_markdown(["arm", "setting", "value", "validation macro"], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
