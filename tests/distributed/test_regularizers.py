"""Regularizers on two gloo processes: ranks agree, and equal one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfadapt import plugins

SCRIPT = Path(__file__).parent / "train_regularizers.py"


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What both ranks, and one process alone, ended with, by regularizer."""
    folder = tmp_path_factory.mktemp("regularizers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for launcher in (together, []):
        command = [sys.executable, *launcher, str(SCRIPT), str(folder)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-4000:]
    return [torch.load(folder / f"{name}.pt") for name in ("2-0", "2-1", "1-0")]


@pytest.mark.parametrize("name", list(plugins.regularizers()))
def test_two_processes_equal_one_with_their_joint_batch(ends, name):
    first, second, alone = (one[name] for one in ends)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6, msg=key)
