"""Models that a method cannot take are refused with what was found in them, and with what would work."""

from __future__ import annotations

import pytest
from torch import nn

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.every_type import tiny_of_type


def test_lora_on_a_model_without_linears_says_what_it_has() -> None:
    model = tiny_of_type("resnet")
    with pytest.raises(AttachError, match=r"no linears.*got: \d+ Conv2d.*target_modules=\('convolution',\)"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("all-linear",)))
    assert not any(isinstance(m, nn.Linear) for m in model.modules())


@pytest.mark.parametrize("target", ["all-linear", "query"])
def test_layers_that_run_again_in_back_propagation_take_no_adapters(target: str) -> None:
    model = tiny_of_type("reformer")
    names = list(model.state_dict())
    with pytest.raises(AttachError, match=r"ReformerLayer\.backward_pass.*outside these layers"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=(target,)))
    assert list(model.state_dict()) == names
