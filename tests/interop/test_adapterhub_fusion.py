"""What a folder of AdapterHub's says of a fusion beside its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertModel

import hfadapt
from hfadapt_plugins.methods.fusion.layer import FusionLayer

SAVED = Path(__file__).resolve().parents[1] / "golden" / "data" / "adapterhub" / "saved" / "fusion3_static"


@pytest.mark.parametrize(
    ("said", "base", "rate"), [(None, 0.3, 0.3), (None, 0.0, 0.0), (0.0, 0.3, 0.0), (0.2, 0.3, 0.2)]
)
def test_a_fusion_trains_on_with_the_dropout_it_had(said, base, rate, tmp_path):
    """adapters takes the base's where none is given; and for 0.0 too (findings/), where what is written holds here."""
    for name in ("a", "b", "c", "fusion"):
        shutil.copytree(SAVED / name, tmp_path / name)
    path = tmp_path / "fusion" / "adapter_fusion_config.json"
    data = json.loads(path.read_text())
    data["config"]["dropout_prob"] = said
    path.write_text(json.dumps(data))
    torch.manual_seed(0)
    model = BertModel.from_pretrained(SAVED.parent / "base", attention_probs_dropout_prob=base)
    for name in ("a", "b", "c", "fusion"):
        hfadapt.load(tmp_path / name, model)
    rates = {layer.config.dropout for layer in model.modules() if isinstance(layer, FusionLayer)}
    assert rates == {rate}
