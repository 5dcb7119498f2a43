"""peft reads the LoRA adapters that are written for it, and its own are attached here: same outputs, both ways."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model

import hfadapt
from hfadapt import plugins
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


MORE = {
    "ranks and scales by module": {
        "rank_pattern": {"layer.0.attention.self.query": 5, "value": 2},
        "alpha_pattern": {r"layer\.\d\.attention\.self\.query": 7, "output.dense": 3},
    },
    "DoRA": {"use_dora": True},
    "DoRA with rslora": {"use_dora": True, "use_rslora": True},
    "biases of the linears": {"bias": "lora_only"},
    "DoRA and biases": {"use_dora": True, "bias": "lora_only"},
    "a bias of B": {"lora_bias": True},
    "all of it": {"lora_bias": True, "rank_pattern": {"query": 2}, "use_rslora": True},
}


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
def test_more_than_two_matrices_computes_here_what_it_computes_there(theirs, options):
    model, folder = theirs(**options)
    mine = base()
    hfadapt.load(folder, mine)
    torch.testing.assert_close(logits(mine), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(mine), logits(base()), atol=1e-3)
    hfadapt.merge(mine, "default")
    torch.testing.assert_close(logits(mine), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        hfadapt.LoRA(3, 7.0, ("query", "ffn_out"), dora=True),
        hfadapt.LoRA(3, 7.0, ("query", "ffn_out"), bias=True, use_rslora=True),
        (hfadapt.LoRA(3, 7.0, ("query",)), hfadapt.LoRA(2, 5.0, ("value", "ffn_out"))),
    ],
    ids=["DoRA", "bias", "ranks by module"],
)
def test_more_of_ours_computes_there_what_it_computes_here(tmp_path, method):
    mine = base()
    hfadapt.attach(mine, method)
    randomize(mine)
    hfadapt.save_peft(mine, tmp_path / "out")
    model = PeftModel.from_pretrained(base(), tmp_path / "out")
    torch.testing.assert_close(logits(model), logits(mine), rtol=1e-5, atol=1e-5)
    again = hfadapt.load(tmp_path / "out", base())
    torch.testing.assert_close(logits(again), logits(mine), rtol=1e-5, atol=1e-6)


def test_dora_starts_as_its_base_and_trains_what_it_should():
    mine = base()
    hfadapt.attach(mine, hfadapt.LoRA(dora=True, target_modules=("query",)))
    torch.testing.assert_close(logits(mine), logits(base()), rtol=1e-5, atol=1e-6)
    mine.train()(**tiny_inputs("bert", "sequence-classification")).logits.square().sum().backward()
    moved = {key.rpartition(".")[2] for key, p in mine.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"lora_b", "magnitude"} <= moved


def test_rows_of_dora_of_lora_and_of_none_share_a_batch():
    mine = base()
    hfadapt.attach(mine, hfadapt.LoRA(dora=True), "a")
    hfadapt.attach(mine, hfadapt.LoRA(dora=True, r=2), "b")
    hfadapt.attach(mine, hfadapt.LoRA(bias=True), "c")
    randomize(mine)
    one = tiny_inputs("bert", "sequence-classification")
    four = {key: value[:1].repeat(4, *(1,) * (value.dim() - 1)) for key, value in one.items()}
    mixed = mine(**four, task_ids=["a", "b", "c", None]).logits
    for row, name in enumerate(("a", "b", "c", None)):
        alone = mine(**{key: value[:1] for key, value in one.items()}, task_ids=[name]).logits
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", ["(a+)+", "(a|b)*c", "a" * 400, "a*b*c*d*", "("], ids=lambda key: key[:12])
def test_a_pattern_that_might_be_matched_for_ever_is_refused(theirs, key):
    _, folder = theirs()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {key: 3}}))
    with pytest.raises(CheckpointError, match="rank_pattern"):
        hfadapt.load(folder, base())


def test_a_folder_of_several_adapters_gives_them_all(tmp_path):
    model = get_peft_model(base(), LoraConfig(r=2, target_modules=["query"]), adapter_name="spam")
    model.add_adapter("mail", LoraConfig(r=3, lora_alpha=9, target_modules=["query", "value"], use_dora=True))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    mine = hfadapt.load(tmp_path, base())
    assert set(hfadapt.attachment(mine).names) == {"spam", "mail"}
    for name in ("spam", "mail"):
        model.set_adapter(name)
        with hfadapt.active(mine, name):
            torch.testing.assert_close(logits(mine), logits(model), rtol=1e-5, atol=1e-5)
    alone = hfadapt.load(tmp_path / "mail", base(), name="other")
    assert hfadapt.attachment(alone).names == ("other",)
    with pytest.raises(CheckpointError, match="one name for several"):
        hfadapt.load(tmp_path, base(), name="x")


def test_a_pickle_of_pefts_is_opened_only_when_it_is_asked_for(theirs):
    model, folder = theirs()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="adapter_model.bin|no adapter_model.safetensors"):
        hfadapt.load(folder, base())
    model.save_pretrained(folder, safe_serialization=False)
    with pytest.raises(CheckpointError, match="weights='bin'"):
        hfadapt.load(folder, base())
    torch.testing.assert_close(logits(hfadapt.load(folder, base(), weights="bin")), logits(model), rtol=1e-5, atol=1e-5)


@pytest.fixture
def ia3_plugin(monkeypatch):
    """The example's plugin, as if it were installed."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples" / "hfadapt-plugin-ia3"))
    module = importlib.import_module("hfadapt_ia3")
    plugins.register(module)
    yield
    plugins.unregister(module.__name__)


@pytest.mark.parametrize(
    ("config", "end"),
    [
        (LNTuningConfig(target_modules=["LayerNorm"]), "ln_tuning_layers"),
        (IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]), "ia3_l"),
    ],
    ids=["LN tuning", "IA3 with the example's plugin"],
)
@pytest.mark.parametrize("headless", [False, True])
def test_norms_and_scales_that_peft_trained_compute_here_what_they_compute_there(
    tmp_path, ia3_plugin, config, end, headless
):
    model = get_peft_model(base().bert if headless else base(), config)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if end in key:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    mine = hfadapt.load(tmp_path, base().bert if headless else base())
    inputs = {k: v for k, v in tiny_inputs("bert", "sequence-classification").items() if k != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(mine(**inputs)[0], model.eval()(**inputs)[0], rtol=1e-5, atol=1e-5)
        plain = (base().bert if headless else base())(**inputs)[0]
    assert not torch.allclose(mine(**inputs)[0], plain, atol=1e-3)
    hfadapt.save(mine, tmp_path / "own")
    again = hfadapt.load(tmp_path / "own", base().bert if headless else base())
    torch.testing.assert_close(again(**inputs)[0], mine(**inputs)[0], rtol=0, atol=0)


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
