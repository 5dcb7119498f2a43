"""Started by torchrun: every training of these tests, one after the other; each writes what a process ended with.

Most of the time of such a test goes into starting the processes, so all share two starts: what runs through, and what
needs processes of its own (a resumed run knows nothing but its checkpoint, and one training is killed).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.distributed import train_families, train_regularizers, train_sharded, train_stock, train_tasks

THROUGH = {
    "families": lambda folder: train_families.run(folder, 2),
    "regularizers": lambda folder: train_regularizers.run(folder, 2),
    "tasks": train_tasks.run,
    "stock": train_stock.run,
    "sharded": train_sharded.run,
}
AFRESH = {"again": train_tasks.resume, "killed": train_families.die}
STARTS = {"through": THROUGH, "afresh": AFRESH}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    for name, training in STARTS[sys.argv[2]].items():
        torch.save(training(place), place / f"{name}-{os.environ['RANK']}.pt")
