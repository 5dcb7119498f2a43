"""Every regularizer against what all must hold."""

from __future__ import annotations

import pytest

import hfadapt
from hfadapt import plugins
from hfadapt.testing import regularizers

# Steps large enough that the terms are of the size of the loss, so that checks of gradients see them.
LARGE = {
    "smart": {"epsilon": 0.05, "sigma": 0.02, "step_size": 0.04, "inner_steps": 2},
    "vat": {"epsilon": 0.5},
    "r3f": {"sigma": 0.05},
    "r4f": {"sigma": 0.05, "noise": "normal"},
    "freelb": {"steps": 3, "max_norm": 0.25, "weight": 0.7},
    "pgd": {"weight": 0.5},
    "yopo": {"steps": 2, "inner_steps": 2},
}


@pytest.mark.parametrize("check", regularizers.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", list(plugins.regularizers()))
def test_conformance(name, check):
    check(plugins.regularizers()[name](**LARGE.get(name, {})))


@pytest.mark.parametrize("check", regularizers.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "smart",
    [
        hfadapt.SMART(norm="l2", scope="example", epsilon=0.5, sigma=0.02, step_size=0.4),
        hfadapt.SMART(scope="batch", proximal="vanilla", smoothness=False),
    ],
    ids=["l2", "proximal"],
)
def test_conformance_of_other_forms(smart, check):
    check(smart)
