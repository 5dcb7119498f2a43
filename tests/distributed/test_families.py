"""Every family of methods on two gloo processes: ranks agree, and equal one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.train_families import FAMILIES

SCRIPT = Path(__file__).parent / "train_families.py"
TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What both ranks, and one process alone, ended with, by family."""
    folder = tmp_path_factory.mktemp("families")
    for launcher in (TOGETHER, ()):
        ran = run(*launcher, SCRIPT, folder)
        assert ran.returncode == 0, ran.stderr[-4000:]
    return [torch.load(folder / f"{name}.pt") for name in ("2-0", "2-1", "1-0")]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_two_processes_equal_one_with_their_joint_batch(ends, name):
    first, second, alone = (one[name] for one in ends)
    assert first.keys() == alone.keys() and all(torch.equal(first[key], second[key]) for key in first)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6, msg=key)


def test_a_rank_that_is_killed_ends_the_others_with_an_error(tmp_path):
    ran = run(*TOGETHER, SCRIPT, tmp_path, "killed")
    assert ran.returncode != 0 and "SIGKILL" in ran.stderr and not list(tmp_path.glob("*.pt"))
