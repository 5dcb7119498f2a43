"""Adapters whose parameters another tool makes of others: they run, and are refused where they would be saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, weight_norm

import hfadapt
from hfadapt.errors import CheckpointError
from hfadapt.runtime.attachment import deltas_of
from hfadapt.testing.tiny import tiny_inputs, tiny_model


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Half of the weight."""
        return weight / 2


CHANGES: dict[str, Any] = {
    "pruned": (lambda one: prune.l1_unstructured(one, "lora_a", 0.5), lambda one: prune.remove(one, "lora_a")),
    "parametrised": (
        lambda one: parametrize.register_parametrization(one, "lora_a", Halved()),
        lambda one: parametrize.remove_parametrizations(one, "lora_a"),
    ),
    "normed": (
        lambda one: weight_norm(one, "lora_a", dim=0),
        lambda one: nn.utils.remove_weight_norm(one, "lora_a"),
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", CHANGES)
def test_what_no_load_would_take_is_not_saved(kind: str, tmp_path: Any) -> None:
    model = tiny_model("bert").eval()
    hfadapt.attach(model, hfadapt.LoRA(2, init="normal"), "one")
    change, undo = CHANGES[kind]
    _, delta = next(iter(deltas_of(model, "one")))
    change(delta.own("one"))
    inputs = tiny_inputs("bert")
    for save in (hfadapt.save, lambda model, folder: model.save_pretrained(folder)):
        with pytest.raises(CheckpointError, match="lora_a"):
            save(model, tmp_path / "refused")
    assert not (tmp_path / "refused" / "hfadapt_config.json").exists()
    undo(delta.own("one"))
    with torch.no_grad():
        wanted = model(**inputs)[0]
    hfadapt.save(model, tmp_path / "saved")
    again = tiny_model("bert").eval()
    hfadapt.load(tmp_path / "saved", again)
    with torch.no_grad():
        assert torch.equal(again(**inputs)[0], wanted)


def test_what_is_attached_in_inference_mode_trains() -> None:
    model = tiny_model("bert")
    with torch.inference_mode():
        hfadapt.attach(model, "lora", "one")
        hfadapt.attach(model, "bottleneck", "two")
    assert not any(parameter.is_inference() for parameter in model.parameters())
    for name in ("one", "two"):
        model(**tiny_inputs("bert"), task_ids=[name] * 3)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_what_joins_adapters_in_inference_mode_trains() -> None:
    for node in (hfadapt.Fuse("one", "two"), hfadapt.Router("one", "two")):
        model = tiny_model("bert")
        hfadapt.attach(model, "bottleneck", names=["one", "two"])
        with torch.inference_mode():
            (hfadapt.add_fusion if isinstance(node, hfadapt.Fuse) else hfadapt.add_router)(model, node)
        assert not any(parameter.is_inference() for parameter in model.parameters())
