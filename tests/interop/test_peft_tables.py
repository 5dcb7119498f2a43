"""LoRA of tables of vectors, and biases of the whole base: read, run in mixed batches, trained, merged and written."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

# model type, head, a table by its name, a linear
BASES = {
    "bert": ("sequence-classification", "word_embeddings", "query"),
    "gpt2": ("causal-lm", "wte", "c_attn"),
    "llama": ("causal-lm", "embed_tokens", "q_proj"),
    "t5": ("seq2seq-lm", "embed_tokens", "q"),
    "bart": ("seq2seq-lm", "embed_tokens", "q_proj"),  # multiplied by a number inside its forward
}

MORE = {"bart": {"scale_embedding": True}}


def base(family="bert"):
    torch.manual_seed(0)
    return tiny_model(family, BASES[family][0], **MORE.get(family, {})).eval()


@torch.no_grad()
def logits(model, family="bert", **more):
    return model.eval()(**tiny_inputs(family, BASES[family][0]), **more).logits


def write(folder, family="bert", **options):
    """Return a model of peft's with numbers drawn at random, and save it."""
    targets = options.pop("target_modules", list(BASES[family][1:]))
    model = get_peft_model(base(family), LoraConfig(r=3, lora_alpha=5, target_modules=targets, **options)).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", BASES)
def test_a_lora_of_a_table_is_read_and_written(tmp_path, family):
    theirs = write(tmp_path / "theirs", family, use_rslora=family == "llama")
    mine = hfadapt.load(tmp_path / "theirs", base(family))
    want = logits(theirs, family)
    torch.testing.assert_close(logits(mine, family), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, logits(base(family), family), atol=1e-3)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    again = PeftModel.from_pretrained(base(family), tmp_path / "mine")
    torch.testing.assert_close(logits(again, family), want, rtol=1e-5, atol=1e-5)
    hfadapt.save(mine, tmp_path / "own")
    assert torch.equal(logits(hfadapt.load(tmp_path / "own", base(family)), family), logits(mine, family))
    if family in ("bert", "gpt2", "t5", "bart"):
        tied = base(family).config.tie_word_embeddings and family != "bert"
        if tied:
            with pytest.raises(AttachError, match="tied"):
                hfadapt.merge(mine)
        else:
            hfadapt.merge(mine)
            torch.testing.assert_close(logits(mine, family), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "table"), [("bert", "position_embeddings"), ("gpt2", "wpe")])
def test_a_table_of_positions_is_read_and_written_with_ranks_of_its_own(tmp_path, family, table):
    linear = BASES[family][2]
    patterns = {"rank_pattern": {table: 2}, "alpha_pattern": {table: 7}}
    theirs = write(tmp_path / "theirs", family, target_modules=[table, linear], **patterns)
    mine = hfadapt.load(tmp_path / "theirs", base(family))
    want = logits(theirs, family)
    torch.testing.assert_close(logits(mine, family), want, rtol=1e-5, atol=1e-5)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    again = PeftModel.from_pretrained(base(family), tmp_path / "mine")
    torch.testing.assert_close(logits(again, family), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_rows_with_tables_of_their_own_and_with_none_share_a_batch(family):
    mine = base(family)
    table, linear = BASES[family][1:]
    hfadapt.attach(mine, hfadapt.LoRA(2, 3.0, (table,)), "a", train_head=False)
    hfadapt.attach(mine, hfadapt.LoRA(4, 3.0, (table, linear)), "b", train_head=False)
    hfadapt.attach(mine, "lora", "c", train_head=False)
    randomize(mine)
    for rows in (["a", "b", None], ["c", "b", "a"]):
        mixed = logits(mine, family, task_ids=rows)
        for number, name in enumerate(rows):
            alone = logits(mine, family, task_ids=[name] * 3)[number]
            torch.testing.assert_close(mixed[number], alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(mine, family, task_ids=[None] * 3), logits(base(family), family))
    with hfadapt.active(mine, hfadapt.Parallel("a", "b")):
        both = logits(mine, family)
    torch.testing.assert_close(both[3:], logits(mine, family, task_ids=["b"] * 3), rtol=1e-5, atol=1e-6)


def test_a_table_starts_as_its_base_and_moves_the_vectors_that_are_read():
    mine = base()
    hfadapt.attach(mine, hfadapt.LoRA(2, 2.0, ("word_embeddings",)), train_head=False)
    assert torch.equal(logits(mine), logits(base()))
    inputs = tiny_inputs("bert", "sequence-classification")
    mine.train()(**inputs).logits.square().sum().backward()
    grad = next(p.grad for key, p in mine.named_parameters() if key.endswith("lora_a"))
    moved = set(grad.abs().sum(0).nonzero().flatten().tolist())
    assert moved and moved <= set(inputs["input_ids"].flatten().tolist())


def test_loras_of_tables_are_combined():
    mine = base()
    for name, r in (("a", 2), ("b", 3)):
        hfadapt.attach(mine, hfadapt.LoRA(r, 3.0, ("word_embeddings", "query")), name, train_head=False)
    randomize(mine)
    hfadapt.combine(mine, {"a": 1.0, "b": 1.0}, method="cat", name="ab")
    with hfadapt.active(mine, hfadapt.Stack("a", "b")):
        want = logits(mine)
    torch.testing.assert_close(logits(mine, task_ids=["ab"] * 3), want, rtol=1e-4, atol=1e-5)


def test_what_a_table_cannot_have_is_refused(tmp_path):
    for more in ({"dora": True}, {"bias": True}, {"gate": "mean"}):
        with pytest.raises(AttachError, match="A and B alone"):
            hfadapt.attach(base(), hfadapt.LoRA(target_modules=("word_embeddings",), **more))
    with pytest.raises(AttachError, match="matched nothing"):
        hfadapt.attach(base("t5"), hfadapt.LoRA(target_modules=("relative_attention_bias",)))
    write(tmp_path, use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA of a table"):
        hfadapt.load(tmp_path, base())


def test_a_table_of_another_base_is_refused(tmp_path):
    write(tmp_path)
    file = str(tmp_path / "adapter_model.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lora_embedding_A"))
    for changed in ({key: tensors[key][:, :50].clone()}, {key: tensors[key] * float("nan")}):
        save_file({**tensors, **changed}, file)
        mine = base()
        with pytest.raises(CheckpointError):
            hfadapt.load(tmp_path, mine)
        assert torch.equal(logits(mine), logits(base()))
    save_file({k: v for k, v in tensors.items() if k != key}, file)
    with pytest.raises(CheckpointError, match="no whole LoRA"):
        hfadapt.load(tmp_path, base())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_all_biases_of_the_base_are_those_of_the_adapter(tmp_path, family, dora):
    targets = [BASES[family][2]]
    theirs = write(tmp_path / "theirs", family, target_modules=targets, bias="all", use_dora=dora)
    before = base(family)
    mine = hfadapt.load(tmp_path / "theirs", base(family))
    torch.testing.assert_close(logits(mine, family), logits(theirs, family), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(mine, family, task_ids=[None] * 3), logits(before, family))
    if not dora:
        hfadapt.export(mine, tmp_path / "mine", format="peft")
        again = PeftModel.from_pretrained(base(family), tmp_path / "mine")
        torch.testing.assert_close(logits(again, family), logits(mine, family), rtol=1e-5, atol=1e-5)


def test_a_bias_of_another_base_is_refused(tmp_path):
    write(tmp_path, target_modules=["query"], bias="all")
    file = str(tmp_path / "adapter_model.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("LayerNorm.bias"))
    save_file({**tensors, key: tensors[key][:7].clone()}, file)
    mine = base()
    with pytest.raises(CheckpointError):
        hfadapt.load(tmp_path, mine)
    assert torch.equal(logits(mine), logits(base())) and not hasattr(mine, "_hfadapt")


def test_parameters_that_a_base_has_not_are_refused_by_name(tmp_path):
    write(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_parameters": ["experts.gate_up_proj"]}))
    with pytest.raises(CheckpointError, match=r"announces parameters.*target_parameters"):
        hfadapt.load(tmp_path, base())


def test_a_lora_of_a_table_that_t5_never_looks_into_is_refused_though_peft_takes_it(tmp_path):
    theirs = write(tmp_path, "t5", target_modules=["shared"])
    assert torch.equal(logits(theirs, "t5"), logits(base("t5"), "t5"))  # peft's runs nowhere
    mine = base("t5")
    with pytest.raises(AttachError, match="would never run.*shared"):
        hfadapt.load(tmp_path, mine)
    assert not any("lora" in name for name, _ in mine.named_parameters())
