"""peft's prefixes stand before a row's tokens as tokens do: positions, distances and layouts are those of peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertModel

import hfadapt
from hfadapt.errors import AttachError, CheckpointError, ConfigError, RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

# peft's own calls of what transformers is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "data"
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "electra"), (None, "FEATURE_EXTRACTION")),
    **dict.fromkeys(
        ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), ("causal-lm", "CAUSAL_LM")
    ),
    **dict.fromkeys(("t5", "bart", "mbart"), ("seq2seq-lm", "SEQ_2_SEQ_LM")),
}


def base(family="bert", head=None, seed=0, **more):
    torch.manual_seed(seed)
    return (tiny_model(family, head, **more) if head else tiny_model(family, **more)).eval()


def inputs(family="bert", head=None):
    found = tiny_inputs(family, head) if head else tiny_inputs(family)
    mask = torch.ones_like(found["input_ids"])
    mask[1, -2:] = 0
    if family == "roberta":  # counts positions from its tokens
        found["input_ids"][1, -2:] = 1
    if family in ("bert", "electra"):
        found["token_type_ids"] = torch.arange(mask.numel()).view(mask.shape) % 2
    return {**found, "attention_mask": mask}


@torch.no_grad()
def output(model, **call):
    return model.eval()(**call)[0]


def write(folder, family="bert", head=None, task="FEATURE_EXTRACTION", length=5):
    """Return a model of peft's with a prefix drawn at random, and save it."""
    model = get_peft_model(base(family, head), PrefixTuningConfig(task_type=task, num_virtual_tokens=length)).eval()
    torch.manual_seed(1)
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return model


def test_what_peft_saved_gives_its_outputs():
    saved = GOLDEN / "adapterhub" / "saved"
    torch.manual_seed(0)
    mine = hfadapt.load(GOLDEN / "peft/saved/prefix_tuning", BertModel.from_pretrained(saved / "base").eval())
    expected = load_file(str(GOLDEN / "peft/saved/prefix_tuning/expected.safetensors"))["last_hidden_state"]
    got = output(mine, **load_file(str(saved / "inputs.safetensors")))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_read_and_written_on_every_family(tmp_path, family):
    head, task = FAMILIES[family]
    given = inputs(family, head)
    want = output(write(tmp_path / "theirs", family, head, task), **given)
    mine = hfadapt.load(tmp_path / "theirs", base(family, head))
    torch.testing.assert_close(output(mine, **given), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, output(base(family, head), **given), atol=1e-2)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    again = PeftModel.from_pretrained(base(family, head), tmp_path / "mine")
    torch.testing.assert_close(output(again, **given), want, rtol=1e-5, atol=1e-5)
    hfadapt.save(mine, tmp_path / "own")
    own = hfadapt.load(tmp_path / "own", base(family, head))
    assert torch.equal(output(own, **given), output(mine, **given))
    hfadapt.detach(own)
    assert torch.equal(output(own, **given), output(base(family, head), **given))


@pytest.mark.parametrize("family", ["bert", "llama", "bart", "t5", "opt"])
def test_rows_with_prefixes_of_several_lengths_and_without_one_share_a_batch(tmp_path, family):
    head, task = FAMILIES[family]
    given = inputs(family, head)
    mine = base(family, head)
    for name, length in (("a", 3), ("b", 5)):
        write(tmp_path / name, family, head, task, length)
        hfadapt.load(tmp_path / name, mine, name=name)
    stack = {"stack": "decoder"} if task == "SEQ_2_SEQ_LM" else {}
    hfadapt.attach(mine, hfadapt.PrefixConfig(4, "flat", attention=("self",), **stack), "apart")
    for rows in (["a", "b", "apart"], ["b", None, "a"]):
        mixed = output(mine, **given, task_ids=rows)
        for number, name in enumerate(rows):
            alone = output(mine, **given, task_ids=[name] * 3)[number]
            torch.testing.assert_close(mixed[number], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "opt"])
def test_generation_with_a_cache_is_generation_without_one(tmp_path, family):
    head, task = FAMILIES[family]
    write(tmp_path, family, head, task)
    mine = hfadapt.load(tmp_path, base(family, head))
    tokens = inputs(family, head)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    with_cache, without = (mine.generate(tokens, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(with_cache, without)
    beams = mine.generate(tokens, num_beams=2, **options)
    assert beams.shape[0] == 3


def test_a_head_comes_along_and_token_types_count_where_peft_hands_them_on(tmp_path):
    # peft 0.21.2 saves such folders and, with newer transformers, no longer runs them: computed here as it says
    model = get_peft_model(
        base("bert", "sequence-classification"), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    ).eval()
    torch.nn.init.normal_(model.base_model.classifier.modules_to_save["default"].weight, std=0.5)
    model.save_pretrained(tmp_path)
    mine = hfadapt.load(tmp_path, base("bert", "sequence-classification"))
    given = inputs()
    types = given.pop("token_type_ids")
    mask = torch.cat([torch.ones(3, 5, dtype=torch.int64), given["attention_mask"]], 1)
    with torch.no_grad():
        cached = model.get_prompt(3)
        states = model.base_model.bert(given["input_ids"], mask, types, past_key_values=cached)
        want = model.base_model.classifier(states.pooler_output)
    torch.testing.assert_close(output(mine, **given, token_type_ids=types), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(mine, **given), want, atol=1e-3)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    written, saved = (load_file(str(one / "adapter_model.safetensors")) for one in (tmp_path / "mine", tmp_path))
    assert written.keys() == saved.keys() and all(torch.equal(written[key], saved[key]) for key in saved)


def test_a_prefix_with_a_network_is_trained_and_written_as_its_table(tmp_path):
    mine = base()
    hfadapt.attach(mine, hfadapt.PrefixConfig(4, mlp_size=8, tokens="behind_untyped", init_std=0.5))
    randomize(mine)
    given = inputs()
    mine.train()(**given)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mine.parameters() if p.requires_grad)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    theirs = PeftModel.from_pretrained(base(), tmp_path / "mine")
    torch.testing.assert_close(output(theirs, **given), output(mine, **given), rtol=1e-5, atol=1e-5)


def test_what_peft_cannot_say_is_not_written(tmp_path):
    for config in (
        hfadapt.PrefixConfig(4),
        hfadapt.PrefixConfig(4, tokens="behind"),
        hfadapt.PrefixConfig(4, layers=(0,), tokens="behind_untyped"),
        (hfadapt.PrefixConfig(4, tokens="behind_untyped"), hfadapt.LoRA()),
    ):
        mine = base()
        hfadapt.attach(mine, config)
        with pytest.raises(AttachError, match="tokens='behind_untyped'"):
            hfadapt.export(mine, tmp_path / "out", format="peft")
    mine = base("t5", "seq2seq-lm")
    hfadapt.attach(mine, hfadapt.PrefixConfig(4, attention="self", stack="decoder", tokens="behind"))
    with pytest.raises(AttachError, match="two layers"):
        hfadapt.export(mine, tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


BAD = {
    "another length": lambda c, t: c.update(num_virtual_tokens=4),
    "another number of layers": lambda c, t: c.update(num_layers=4),
    "another width": lambda c, t: c.update(token_dim=16),
    "other heads": lambda c, t: c.update(num_attention_heads=8),
    "a length that is no number": lambda c, t: c.update(num_virtual_tokens="5"),
    "an encoder-decoder's": lambda c, t: c.update(num_transformer_submodules=2),
    "no task": lambda c, t: c.update(task_type=None),
    "a field that is not known": lambda c, t: c.update(rotates=True),
    "no table": lambda c, t: t.clear() or t.update(x=torch.zeros(1)),
    "a tensor more": lambda c, t: t.update({"base_model.classifier.weight": torch.zeros(2, 32)}),
    "another shape": lambda c, t: t.update(prompt_embeddings=torch.zeros(5, 64)),
    "no numbers": lambda c, t: t.update(prompt_embeddings=torch.full((5, 128), float("nan"))),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_folder_that_was_changed_is_refused_and_the_model_is_as_it_was(tmp_path, change):
    write(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    data, tensors = json.loads(config.read_text()), load_file(str(weights))
    change(data, tensors)
    config.write_text(json.dumps(data))
    save_file(tensors, str(weights))
    mine, given = base(), inputs()
    before = output(mine, **given)
    with pytest.raises(CheckpointError):
        hfadapt.load(tmp_path, mine)
    assert torch.equal(output(mine, **given), before) and not hasattr(mine, "_hfadapt")


def test_a_family_that_was_not_compared_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(CheckpointError, match="compared"):
        hfadapt.load(tmp_path, base("distilbert"))


def test_tokens_past_the_last_position_are_an_error(tmp_path):
    write(tmp_path, length=5)
    mine = hfadapt.load(tmp_path, base())
    long = torch.ones(1, 60, dtype=torch.int64)
    with pytest.raises(RoutingError, match="past the model's last position"):
        mine(long)
    with pytest.raises(ConfigError, match="tokens"):
        hfadapt.PrefixConfig(tokens="behind", form="relu")
    with pytest.raises(AttachError, match="counts positions"):
        hfadapt.attach(base("vit"), hfadapt.PrefixConfig(4, tokens="behind"))


def test_a_prefix_that_leaves_a_sliding_window_is_an_error(tmp_path):
    write(tmp_path, "mistral", "causal-lm", "CAUSAL_LM")
    mine = base("mistral", "causal-lm")
    mine.config.sliding_window = 16
    hfadapt.load(tmp_path, mine)
    assert mine(torch.ones(1, 11, dtype=torch.int64)).logits.isfinite().all()
    with pytest.raises(RoutingError, match="window"):
        mine(torch.ones(1, 12, dtype=torch.int64))


def test_positions_are_not_averaged_and_each_child_of_parallel_counts_its_own(tmp_path):
    mine, given = base(), inputs()
    for name, length in (("a", 3), ("b", 5)):
        write(tmp_path / name, length=length)
        hfadapt.load(tmp_path / name, mine, name=name)
    with hfadapt.active(mine, hfadapt.Average("a", "b")), pytest.raises(RoutingError, match="averaged"):
        mine(**given)
    with hfadapt.active(mine, hfadapt.Parallel("a", "b")):
        both = output(mine, **given)
    for number, name in enumerate("ab"):
        alone = output(mine, **given, task_ids=[name] * 3)
        torch.testing.assert_close(both[3 * number : 3 * number + 3], alone, rtol=1e-5, atol=1e-6)


def test_a_pickle_is_opened_when_it_is_asked_for(tmp_path):
    model = write(tmp_path / "safe")
    shutil.copytree(tmp_path / "safe", tmp_path / "bin")
    (tmp_path / "bin" / "adapter_model.safetensors").unlink()
    torch.save(load_file(str(tmp_path / "safe" / "adapter_model.safetensors")), tmp_path / "bin" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="weights='bin'"):
        hfadapt.load(tmp_path / "bin", base())
    mine = hfadapt.load(tmp_path / "bin", base(), weights="bin")
    torch.testing.assert_close(output(mine, **inputs()), output(model, **inputs()), rtol=1e-5, atol=1e-5)
