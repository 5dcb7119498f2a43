"""What deltas keep of their adapters' configs between calls is that of the adapters that are there now."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch

import hfadapt
from hfadapt.method import Delta
from hfadapt.testing.tiny import tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 2, "init": "normal"},
    "dora": {"method": "lora", "r": 2, "init": "normal", "dora": True},
    "parallel": {"method": "parallel", "r": 2, "init": "normal"},
}
SCALE = {"lora": "lora_alpha", "dora": "lora_alpha", "parallel": "scale"}
IDS = torch.arange(12).view(3, 4) + 5


def attached(model: Any, method: str, **scales: float) -> Any:
    for seed, (name, scale) in enumerate(scales.items()):
        torch.manual_seed(seed)
        hfadapt.attach(model, {**METHODS[method], SCALE[method]: scale}, name)
    return model.eval()


def outputs(model: Any, *names: str) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, task_ids=list(names)).last_hidden_state


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_comes_again_with_another_scale_has_that(method: str) -> None:
    model = attached(tiny_model("bert").eval(), method, one=2.0, two=3.0)
    before = outputs(model, "one", "two", "one")
    hfadapt.detach(model, "two")
    torch.manual_seed(1)
    hfadapt.attach(model, {**METHODS[method], SCALE[method]: 7.0}, "two")
    after = outputs(model.eval(), "one", "two", "one")
    assert torch.equal(
        after, outputs(attached(tiny_model("bert").eval(), method, one=2.0, two=7.0), "one", "two", "one")
    )
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_other_adapters_have_their_scales(method: str) -> None:
    model = attached(tiny_model("bert").eval(), method, one=2.0, two=3.0, three=5.0)
    alone = {name: outputs(model, *[name] * 3) for name in ("one", "two", "three")}
    for names in (("one", "two", "three"), ("three", "one", "three"), ("two", "three", "two"), ("one", "two", "three")):
        rows = outputs(model, *names)
        for row, name in enumerate(names):
            torch.testing.assert_close(rows[row], alone[name][row])


@pytest.mark.parametrize(
    "copied", [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_config_that_is_given_anew_counts(method: str, copied: Any) -> None:
    model = attached(tiny_model("bert").eval(), method, one=2.0, two=3.0)
    outputs(model, "one", "two", "one")
    model = copied(model)
    for delta in model.modules():
        if isinstance(delta, Delta):
            weights = delta.own("two")
            weights.config = dataclasses.replace(weights.config, lora_alpha=7.0)
    anew = attached(tiny_model("bert").eval(), method, one=2.0, two=7.0)
    assert torch.equal(outputs(model, "one", "two", "one"), outputs(anew, "one", "two", "one"))


def test_a_copy_goes_its_own_way() -> None:
    model = attached(tiny_model("bert").eval(), "lora", one=2.0, two=3.0)
    before = outputs(model, "one", "two", "one")
    other = copy.deepcopy(model)
    hfadapt.detach(other, "two")
    torch.manual_seed(1)
    hfadapt.attach(other, {**METHODS["lora"], "lora_alpha": 7.0}, "two")
    assert not torch.allclose(outputs(other.eval(), "one", "two", "one")[1], before[1])
    assert torch.equal(outputs(model, "one", "two", "one"), before)
