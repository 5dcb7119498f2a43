"""What peft's names of modules mean here: the same linears, or a difference that the page on moving from peft names."""

from __future__ import annotations

import peft
import pytest
from peft.tuners.lora import LoraLayer

import hfadapt
from hfadapt.method.delta import Delta
from hfadapt.testing.tiny import tiny_model

OUTSIDE = {
    "bert": ("pooler.dense",),
    "roberta": ("pooler.dense",),
    "gpt2": (),
    "llama": (),
    "t5": (),
    "vit": ("pooler.dense",),
}


def theirs(family, names):
    model = peft.get_peft_model(tiny_model(family), peft.LoraConfig(r=2, target_modules=names)).base_model.model
    return {path for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def ours(family, *names):
    model = tiny_model(family)
    hfadapt.attach(model, hfadapt.LoRA(r=2, target_modules=names))
    return {path.partition(".hfadapt.")[0] for path, module in model.named_modules() if isinstance(module, Delta)}


@pytest.mark.parametrize("family", OUTSIDE)
def test_all_linear_is_pefts_less_what_stands_outside_of_the_layers(family):
    wanted = theirs(family, "all-linear")
    assert ours(family, "all-linear") == wanted - set(OUTSIDE[family])
    assert ours(family, "all-linear", *OUTSIDE[family]) == wanted
