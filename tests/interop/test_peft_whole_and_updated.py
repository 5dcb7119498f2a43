"""A module with an update and with weights of its own: peft has one or the other, so it is said or refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import hfadapt
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

HEADS = {
    "sequence-classification": ("classifier", "SEQ_CLS"),
    "token-classification": ("classifier", "TOKEN_CLS"),
    "question-answering": ("qa_outputs", "QUESTION_ANS"),
}


def base(task):
    torch.manual_seed(0)
    return tiny_model("bert", task).double().eval()


@torch.no_grad()
def answer(model, task):
    output = model.eval()(**tiny_inputs("bert", task))
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits])


@pytest.mark.parametrize("task", HEADS)
def test_an_update_of_the_head_comes_back_where_peft_would_save_the_head_whole(tmp_path, task):
    head, kind = HEADS[task]
    theirs = get_peft_model(base(task), LoraConfig(r=3, lora_alpha=5, target_modules=["query", head]))
    torch.manual_seed(1)
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = hfadapt.load(tmp_path / "theirs", base(task))
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    written = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (written["task_type"], written["modules_to_save"]) == (None, None), f"{kind} would replace the update"
    again = PeftModel.from_pretrained(base(task), tmp_path / "mine")
    torch.testing.assert_close(answer(again, task), answer(mine, task), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer(again, task), answer(theirs, task), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(answer(again, task), answer(base(task), task), atol=1e-3)


@pytest.mark.parametrize(
    ("targets", "whole", "named"),
    [(("query", "classifier"), (), "classifier"), (("query", "pooler.dense"), ("pooler",), "pooler")],
    ids=["head", "pooler"],
)
def test_weights_of_its_own_under_an_update_are_refused_by_name(tmp_path, targets, whole, named):
    mine = base("sequence-classification")
    hfadapt.attach(mine, hfadapt.LoRA(3, 7.0, targets), modules_to_save=[*whole])
    randomize(mine)
    for module in hfadapt.own_modules(mine, "default").values():
        torch.nn.init.normal_(module.weight)
    with pytest.raises(AttachError, match=rf"saves a module whole or updates it.*{named}"):
        hfadapt.export(mine, tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


def test_a_head_that_trains_in_place_under_an_update_is_refused(tmp_path):
    mine = base("sequence-classification")
    hfadapt.attach(mine, hfadapt.LoRA(3, 7.0, ("query", "classifier")), modules_to_save=[])
    randomize(mine)
    mine.classifier.weight.requires_grad_(True)
    with pytest.raises(AttachError, match="saves a module whole or updates it"):
        hfadapt.export(mine, tmp_path / "out", format="peft")


def test_a_trained_head_beside_updates_elsewhere_is_saved_whole(tmp_path):
    task = "sequence-classification"
    mine = base(task)
    hfadapt.attach(mine, hfadapt.LoRA(3, 7.0, ("query", "ffn_out")))
    randomize(mine)
    torch.nn.init.normal_(hfadapt.own_modules(mine, "default")["classifier"].weight)
    hfadapt.export(mine, tmp_path / "out", format="peft")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["task_type"], written["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
    again = PeftModel.from_pretrained(base(task), tmp_path / "out")
    torch.testing.assert_close(answer(again, task), answer(mine, task), rtol=1e-9, atol=1e-12)
