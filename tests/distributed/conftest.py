"""The two starts of torchrun that all tests of this folder look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

SCRIPT = Path(__file__).parent / "trainings.py"


def start(folder: Path, which: str) -> tuple[int, str]:
    """Start two processes unless another worker has: return the launcher's exit status and what it said."""
    said, code = folder / f"{which}.txt", folder / f"{which}.code"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{which}.lock"):
        if not code.exists():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parents[2]), *filter(None, sys.path)])
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            with said.open("w") as out:
                ran = subprocess.run(
                    [*launcher, str(SCRIPT), str(folder), which], env=environment, stdout=out, stderr=out, timeout=600
                )
            code.write_text(str(ran.returncode))
    return int(code.read_text()), said.read_text()


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """The folder of the trainings, one for all workers."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trainings"


@pytest.fixture(scope="session")
def through(place) -> Path:
    """The folder, once every training that runs through has."""
    code, said = start(place, "through")
    assert code == 0, said[-6000:]
    return place


@pytest.fixture(scope="session")
def afresh(through) -> tuple[Path, int, str]:
    """The folder, and how the processes ended that came after."""
    return through, *start(through, "afresh")


def ranks(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what each rank wrote of a training."""
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]
