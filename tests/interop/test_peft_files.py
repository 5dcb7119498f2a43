"""peft reads the LoRA adapters that are written for it, and its own are attached here: same outputs, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

# model type, head, linears by peft's names
BASES = {
    "bert": ("sequence-classification", ["query", "value", "output.dense"]),
    "gpt2": ("causal-lm", ["c_attn", "c_proj"]),
    "t5": ("seq2seq-lm", ["q", "wo"]),
}


def base(model_type="bert"):
    torch.manual_seed(0)
    return tiny_model(model_type, BASES[model_type][0]).eval()


@torch.no_grad()
def logits(model, model_type="bert"):
    return model.eval()(**tiny_inputs(model_type, BASES[model_type][0])).logits


@pytest.fixture
def theirs(tmp_path):
    """A folder that peft wrote."""

    def write(model_type="bert", **options):
        config = LoraConfig(r=3, lora_alpha=5, target_modules=BASES[model_type][1], **options)
        model = get_peft_model(base(model_type), config)
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(tmp_path / "theirs")
        return model, tmp_path / "theirs"

    return write


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model_type", BASES)
def test_an_adapter_of_pefts_computes_here_what_it_computes_there(theirs, model_type, rslora):
    head = ["classifier"] if model_type == "bert" else None
    model, folder = theirs(model_type, use_rslora=rslora, modules_to_save=head)
    mine = base(model_type)
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(logits(mine, model_type), logits(model, model_type), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(mine, model_type), logits(base(model_type), model_type), atol=1e-3)


@pytest.mark.parametrize("model_type", BASES)
def test_an_adapter_of_ours_computes_there_what_it_computes_here(tmp_path, model_type):
    mine = base(model_type)
    targets = ("c_attn",) if model_type == "gpt2" else ("query", "ffn_out")
    hfadapt.attach(mine, hfadapt.LoRA(3, 7.0, target_modules=targets))
    randomize(mine)
    if model_type == "bert":
        torch.nn.init.normal_(mine.classifier.weight)
    hfadapt.save_peft(mine, tmp_path / "out")
    model = PeftModel.from_pretrained(base(model_type), tmp_path / "out")
    torch.testing.assert_close(logits(model, model_type), logits(mine, model_type), rtol=1e-5, atol=1e-5)


def test_a_round_trip_is_exact(tmp_path):
    mine = base()
    hfadapt.attach(mine, "lora", "spam")
    randomize(mine)
    hfadapt.save_peft(mine, tmp_path)
    again = base()
    hfadapt.load_peft(again, tmp_path, "mail")
    assert hfadapt.attachment(again).names == ("mail",)
    assert torch.equal(logits(again), logits(mine))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"bias": "lora_only"}, "bias"),
    ],
    ids=["DoRA", "ranks by module", "biases"],
)
def test_more_than_a_plain_lora_is_refused(theirs, options, match):
    _, folder = theirs(**options)
    with pytest.raises(CheckpointError, match=rf"more than a plain LoRA[\s\S]*{match}"):
        hfadapt.load_peft(base(), folder)


def test_another_base_and_damaged_files_are_refused_and_the_model_stays_clean(theirs):
    _, folder = theirs()
    for wrong in (base("gpt2"), tiny_model("bert", "sequence-classification", hidden_size=16)):
        with pytest.raises(CheckpointError, match=r"another base|another shape"):
            hfadapt.load_peft(wrong, folder)
        assert not any("hfadapt" in key for key in wrong.state_dict())
    opened = base()
    assert hfadapt.load(folder, opened) is opened
    assert hfadapt.attachment(opened).names == ("default",)
    described = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**described, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match=r"peft_type 'IA3'[\s\S]*hfadapt-plugin-ia3"):
        hfadapt.load_peft(base(), folder)


def test_what_pefts_files_cannot_say_is_refused(tmp_path):
    for model, method, match in (
        (base("gpt2"), hfadapt.LoRA(3), "slice of a fused linear"),
        (base(), "pfeiffer", "only a LoRA without a gate"),
        (base(), hfadapt.LoRA(3, gate="token"), "only a LoRA without a gate"),
    ):
        hfadapt.attach(model, method)
        with pytest.raises(AttachError, match=match):
            hfadapt.save_peft(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_folder_of_hfadapts_own_is_not_overwritten(tmp_path):
    model = base()
    hfadapt.attach(model, "lora")
    hfadapt.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="another folder"):
        hfadapt.save_peft(model, tmp_path)
    hfadapt.load(tmp_path, base())
