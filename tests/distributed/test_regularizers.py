"""Regularizers on two gloo processes: ranks agree, and equal one process with the same global batch."""

from __future__ import annotations

import pytest
import torch

from hfadapt import plugins
from tests.distributed.conftest import ranks
from tests.distributed.train_regularizers import run


@pytest.fixture(scope="module")
def ends(through, tmp_path_factory):
    """What both ranks, and one process alone, ended with, by regularizer."""
    return [*ranks(through, "regularizers"), run(tmp_path_factory.mktemp("alone"), 1)]


@pytest.mark.parametrize("name", list(plugins.regularizers()))
def test_two_processes_equal_one_with_their_joint_batch(ends, name):
    first, second, alone = (one[name] for one in ends)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6, msg=key)
