"""What peft's files say beyond a plain LoRA is refused by name; what loads computes what it computes in peft."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import KasaConfig, VeloraConfig

import hfadapt
from hfadapt.errors import CheckpointError
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_plugins.methods.lora.peft_config import HARMLESS, READ, REFUSED

HEADS = {"bert": "sequence-classification", "gpt2": "causal-lm"}
TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"]}
# a value of each refused field that peft would act on
NON_DEFAULT = {
    "alora_invocation_tokens": [3, 4],
    "arrow_config": {"top_k": 2},
    "ensure_weight_tying": True,
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "monteclora_config": {"num_samples": 8},
    "trainable_token_indices": [1, 2],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 4},
}


def base(kind="bert", head=None):
    torch.manual_seed(0)
    return tiny_model(kind, head or HEADS[kind]).eval()


def headless():
    """The base of ``base()`` alone, with the same weights."""
    return base().bert


@torch.no_grad()
def output(model, kind="bert"):
    return model.eval()(**tiny_inputs(kind, HEADS[kind]))[0]


@pytest.fixture
def theirs(tmp_path):
    """Write a folder with peft; return what peft computes, and the folder."""

    def write(kind="bert", model=None, initial=False, **options):
        options = {"target_modules": TARGETS[kind], "r": 4, "lora_alpha": 6, **options}
        model = get_peft_model(base(kind) if model is None else model, LoraConfig(**options))
        if initial:
            model.save_pretrained(tmp_path / "initial")
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        more = {"path_initial_model_for_weight_conversion": str(tmp_path / "initial")} if initial else {}
        model.save_pretrained(tmp_path / "theirs", **more)
        return model, tmp_path / "theirs"

    return write


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder, match, model=None):
    """Check that loading is refused with ``match`` and leaves the model as it was."""
    model = base() if model is None else model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        hfadapt.load_peft(model, folder)
    assert "another base" not in str(caught.value)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_every_field_of_pefts_config_is_known_with_its_default():
    fields = {field.name: field for field in dataclasses.fields(LoraConfig)}
    assert set(fields) == {*READ, *HARMLESS, *REFUSED}
    assert len(fields) == len(READ) + len(HARMLESS) + len(REFUSED)
    defaults = LoraConfig().to_dict()
    assert {name: defaults[name] for name in REFUSED} == REFUSED
    assert NON_DEFAULT.keys() == REFUSED.keys()


@pytest.mark.parametrize("field", NON_DEFAULT)
def test_a_field_beyond_a_plain_lora_is_refused_by_name(theirs, field):
    _, folder = theirs()
    hfadapt.load_peft(base(), folder)
    change(folder, **{field: NON_DEFAULT[field]})
    refused(folder, rf"more than a plain LoRA[\s\S]*{field}=")


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_an_initialisation_that_changes_the_base_is_refused(theirs, init):
    _, folder = theirs(init_lora_weights=init)
    refused(folder, rf"initialisation changed[\s\S]*init_lora_weights='{init}'[\s\S]*weight_conversion")


@pytest.mark.parametrize("init", ["corda", "loftq", "PiSSA", "OLoRA", "of_next_year", 3.5, ["pissa"]])
def test_initialisations_that_need_data_or_are_not_known_are_refused(theirs, init):
    _, folder = theirs()
    change(folder, init_lora_weights=init)
    refused(folder, "init_lora_weights")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_initialisations_of_an_unchanged_base_compute_what_they_compute_there(theirs, init):
    model, folder = theirs(init_lora_weights=init)
    mine = base()
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(output(mine), output(model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output(mine), output(base()), atol=1e-3)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_one_that_peft_converted_to_a_plain_lora_computes_the_same(theirs, init):
    model, folder = theirs(init_lora_weights=init, initial=True)
    mine = base()
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(output(mine), output(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "options"),
    [("kasa_config", {"kasa_config": KasaConfig()}), ("velora_config", {"velora_config": VeloraConfig(num_groups=4)})],
    ids=["KaSA", "VeLoRA"],
)
def test_variants_are_refused_for_what_they_are(theirs, field, options):
    _, folder = theirs(**options)
    refused(folder, field)
    # the weights say it too, whatever became of the config
    change(folder, **{field: None})
    if field == "kasa_config":
        refused(folder, r"more than the matrices A and B[\s\S]*lora_")


@pytest.mark.parametrize(
    "options",
    [
        {"layers_to_transform": [1]},
        {"exclude_modules": ["layer.0.attention.self.query"]},
        {"target_modules": r".*layer\.1.*query"},
        {"target_modules": "all-linear"},
        {"task_type": "SEQ_CLS"},
        {"use_rslora": True},
    ],
    ids=str,
)
def test_where_and_how_it_was_trained_needs_nothing_here(theirs, options):
    model, folder = theirs(**options)
    mine = base()
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(output(mine), output(model), rtol=1e-5, atol=1e-6)


def test_an_unknown_field_is_refused_by_name_unless_it_says_nothing(theirs):
    _, folder = theirs()
    for nothing in (None, False, {}, [], ""):
        change(folder, use_spam=nothing)
        hfadapt.load_peft(base(), folder)
    change(folder, use_spam=True)
    refused(folder, r"use_spam=True \(not known here\)")


def test_a_field_of_a_newer_peft_is_judged_by_the_default_of_the_one_installed(theirs, monkeypatch):
    @dataclasses.dataclass
    class Newer(LoraConfig):
        spam_factor: float = 2.0

    _, folder = theirs()
    monkeypatch.setattr("peft.LoraConfig", Newer)
    change(folder, spam_factor=2.0)
    hfadapt.load_peft(base(), folder)
    change(folder, spam_factor=0)
    refused(folder, "spam_factor=0")


@pytest.mark.parametrize(
    "fields",
    [{"r": 0}, {"r": 2.5}, {"r": True}, {"lora_alpha": "16"}, {"lora_alpha": -1}, {"lora_dropout": 1}],
    ids=str,
)
def test_values_that_no_lora_has_are_damage(theirs, fields):
    _, folder = theirs()
    change(folder, **fields)
    refused(folder, r"damaged[\s\S]*" + next(iter(fields)))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_file_has_not_are_an_error(theirs, bias):
    _, folder = theirs()
    change(folder, bias=bias)
    refused(folder, "lacks a bias")


def test_a_rank_that_the_weights_have_not_is_refused(theirs):
    _, folder = theirs()
    change(folder, r=3)
    refused(folder, "do not have the config's rank")


def test_a_lora_of_the_tied_lm_head_computes_what_it_computes_there(theirs):
    model, folder = theirs("gpt2", target_modules=["lm_head", "c_attn"])
    mine = base("gpt2")
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(output(mine, "gpt2"), output(model, "gpt2"), rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.lm_head.weight, base("gpt2").lm_head.weight)


def test_a_copy_of_another_base_in_the_file_is_refused(theirs):
    _, folder = theirs("gpt2", target_modules=["lm_head", "c_attn"])
    other = base("gpt2")
    other.lm_head.weight.data += 1
    refused(folder, r"weights of the base, and this base's differ[\s\S]*lm_head.weight", other)
    other = base("gpt2")
    other.resize_token_embeddings(120)
    refused(folder, r"vocabulary was resized", other)


@pytest.mark.parametrize("module", ["lm_head", "wte"])
def test_a_trained_copy_of_one_of_two_tied_weights_is_the_adapters_own(theirs, module):
    model, folder = theirs("gpt2", modules_to_save=[module])
    mine, before = base("gpt2"), output(base("gpt2"), "gpt2")
    hfadapt.load_peft(mine, folder)
    torch.testing.assert_close(output(mine, "gpt2"), output(model, "gpt2"), rtol=1e-5, atol=1e-5)
    assert mine.lm_head.weight is mine.transformer.wte.weight
    hfadapt.detach(mine)
    assert torch.equal(output(mine, "gpt2"), before)


def test_an_adapter_trained_without_a_head_serves_a_model_with_one_and_the_other_way_round(theirs):
    model, folder = theirs(model=headless())
    mine = base()
    hfadapt.load_peft(mine, folder)
    with torch.no_grad():
        inputs = tiny_inputs("bert", HEADS["bert"])
        hidden = mine.bert(**{k: v for k, v in inputs.items() if k != "labels"})[0]
    torch.testing.assert_close(hidden, output(model), rtol=1e-5, atol=1e-6)
    model, folder = theirs()
    alone = headless()
    hfadapt.load_peft(alone, folder)
    full = base()
    full.bert.load_state_dict(headless().state_dict())
    hfadapt.load_peft(full, folder)
    with torch.no_grad():
        torch.testing.assert_close(alone(**inputs)[0], full.bert(**inputs)[0])


def test_a_head_in_the_file_has_no_place_on_a_base_without_one(theirs):
    _, folder = theirs(modules_to_save=["classifier"])
    refused(folder, r"a module that BertModel has not, such as the head[\s\S]*classifier", headless())


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "nonsense", "7" * 5000, ""])
def test_a_config_that_is_none_is_our_error(theirs, text):
    _, folder = theirs()
    (folder / "adapter_config.json").write_text(text)
    refused(folder, "adapter_config.json (cannot be read|holds no fields)")
