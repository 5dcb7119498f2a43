"""Sampling of tasks equals the reference implementation of the PALs paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hfadapt

GOLDEN = json.loads((Path(__file__).parent / "data" / "sampling.json").read_text())
SIZES = GOLDEN["sizes_hardcoded_in_reference"]


class Replay:
    """The reference's random stream."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)

    def random(self, size: int) -> np.ndarray:
        return self._state.random_sample(size)


@pytest.mark.parametrize(("strategy", "key"), [("Proportional", "prop"), ("SquareRoot", "sqrt")])
def test_fixed_strategies_equal_the_reference(strategy, key):
    got = getattr(hfadapt, strategy)().probabilities(SIZES, 3, 25)
    np.testing.assert_allclose(got, GOLDEN[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("epoch", range(1, 26))
def test_annealed_equals_the_reference_in_every_epoch(epoch):
    golden = GOLDEN["anneal_E25"][str(epoch)]
    annealed = hfadapt.Annealed()
    assert annealed.alpha(epoch, 25) == pytest.approx(golden["alpha"], abs=1e-12)
    np.testing.assert_allclose(annealed.probabilities(SIZES, epoch, 25), golden["p"], rtol=0, atol=1e-12)


def test_draws_equal_the_reference_given_its_random_numbers():
    draws = hfadapt.Proportional().draw(SIZES, 1, 25, 64, 0, Replay(42))
    assert draws.tolist() == GOLDEN["draws_seed42_prop_first64"]


def test_annealed_draws_equal_the_reference():
    stream = Replay(42)
    for epoch, golden in GOLDEN["draws_seed42_anneal_E25_first32_each_of_epochs_1_13_25"].items():
        assert hfadapt.Annealed().draw(SIZES, int(epoch), 25, 32, 0, stream).tolist() == golden
