"""Adapters know their base by what decides shapes and computation; labels, dropout and token ids are a task's."""

import hashlib
import json

import pytest
import torch
import transformers

import hfadapt
from hfadapt.adapters.files import CONFIG_FILE
from hfadapt.errors import CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert", padding="right")


def named_base(tmp_path, kind="bert", head="sequence-classification", **changes):
    """A base that ``from_pretrained`` finds again by its name."""
    tiny_model(kind, head).save_pretrained(tmp_path / "base")
    cls = type(tiny_model(kind, head))
    return cls.from_pretrained(tmp_path / "base", **changes)


def saved(model, folder, method="lora"):
    hfadapt.attach(model, method)
    randomize(model)
    hfadapt.save(model, folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 9},
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.2},
        {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"},
        {"initializer_range": 0.5, "use_cache": False, "output_hidden_states": True, "architectures": ["X"]},
        {"vocab_size": 101},
    ],
    ids=lambda changes: next(iter(changes)),
)
@torch.no_grad()
def test_what_is_not_the_base_may_differ(tmp_path, changes):
    model = tiny_model("bert", "sequence-classification")
    saved(model, tmp_path / "x")
    other = tiny_model("bert", "sequence-classification")
    for key, value in changes.items():
        setattr(other.config, key, value)
    hfadapt.load(tmp_path / "x", other)
    assert torch.equal(other(**INPUTS).logits, model.eval()(**INPUTS).logits)


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}, {"num_attention_heads": 8}, {"is_decoder": True}],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_decides_computation_is_refused_and_the_fields_are_listed(tmp_path, changes, strict):
    saved(tiny_model("bert", "sequence-classification"), tmp_path / "x")
    other = tiny_model("bert", "sequence-classification")
    for key, value in changes.items():
        setattr(other.config, key, value)
    key, value = next(iter(changes.items()))
    with pytest.raises(CheckpointError, match=rf"another base; differing: {key} was .*, is {value!r}"):
        hfadapt.load(tmp_path / "x", other, strict=strict)
    assert "_hfadapt" not in other.__dict__


def test_a_field_that_no_stock_code_reads_is_named_and_may_differ_if_asked(tmp_path):
    saved(tiny_model("bert", "sequence-classification"), tmp_path / "x")
    other = tiny_model("bert", "sequence-classification")
    other.config.made_by = "us"
    with pytest.raises(CheckpointError, match=r"made_by was None, is 'us'.*strict=False"):
        hfadapt.load(tmp_path / "x", other)
    hfadapt.load(tmp_path / "x", other, strict=False)


def test_parts_of_a_config_are_looked_at_as_the_whole_is(tmp_path):
    saved(tiny_model("clip"), tmp_path / "x")
    other = tiny_model("clip")
    other.config.text_config.eos_token_id = 5
    other.config.vision_config.attention_dropout = 0.5
    hfadapt.load(tmp_path / "x", other)
    other = tiny_model("clip")
    other.config.vision_config.hidden_act = "relu"
    with pytest.raises(CheckpointError, match=r"vision_config was"):
        hfadapt.load(tmp_path / "x", other)


@torch.no_grad()
def test_three_renamed_classes_come_back_by_themselves(tmp_path):
    names = {0: "bad", 1: "fair", 2: "good"}
    labels = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    model = named_base(tmp_path, **labels, ignore_mismatched_sizes=True)
    saved(model, tmp_path / "x")
    again = hfadapt.load(tmp_path / "x")
    assert torch.equal(again(**INPUTS).logits, model.eval()(**INPUTS).logits)
    assert again.config.id2label == names and again.config.label2id["good"] == 2


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_a_resized_vocabulary_comes_back_by_itself_with_its_rows(tmp_path, kind):
    head = "sequence-classification" if kind == "bert" else "causal-lm"
    model = named_base(tmp_path, kind, head)
    model.resize_token_embeddings(101)
    saved(model, tmp_path / "x")
    again = hfadapt.load(tmp_path / "x")
    inputs = {"input_ids": torch.tensor([[3, 99, 100, 5]])}
    assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)


def test_added_tokens_without_their_rows_are_refused(tmp_path):
    model = named_base(tmp_path)
    saved(model, tmp_path / "x")
    path = tmp_path / "x" / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 120}))
    with pytest.raises(CheckpointError, match="lacks their embeddings"):
        hfadapt.load(tmp_path / "x")


def as_the_first_version_wrote_it(folder, config):
    """Put the hash of ``config`` in the folder that counted everything, in place of the fields."""
    left_out = {"torch_dtype", "dtype", "transformers_version", "architectures", "id2label", "label2id", "num_labels"}
    left_out |= {"problem_type", "classifier_dropout", "use_cache"}
    data = {k: v for k, v in config.to_dict().items() if k not in left_out and not k.startswith("_")}
    found = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = folder / CONFIG_FILE
    described = json.loads(path.read_text())
    for key in ("base_config", "labels", "vocab_size", "config_sha256"):
        del described[key]
    path.write_text(json.dumps({**described, "base_config_hash": found}))


def test_folders_with_the_old_hash_load_and_strict_is_the_way_out_of_what_it_counted(tmp_path):
    model = tiny_model("bert", "sequence-classification")
    saved(model, tmp_path / "x")
    as_the_first_version_wrote_it(tmp_path / "x", model.config)
    hfadapt.load(tmp_path / "x", tiny_model("bert", "sequence-classification"))
    other = tiny_model("bert", "sequence-classification")
    other.config.eos_token_id = 8
    with pytest.raises(CheckpointError, match=r"another base.*strict=False"):
        hfadapt.load(tmp_path / "x", other)
    hfadapt.load(tmp_path / "x", other, strict=False)


def test_what_trainer_writes_into_the_config_does_not_lock_the_base_out(tmp_path):
    model = tiny_model("llama", "causal-lm")
    hfadapt.attach(model, "lora")
    rows = [{"input_ids": [1, 5, 6, 2], "labels": [1, 5, 6, 2]}] * 2
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no"
    )
    from hfadapt.testing.toy import tiny_tokenizer

    trainer = transformers.Trainer(model, args, train_dataset=rows, processing_class=tiny_tokenizer())
    trainer.train()
    assert model.config.to_dict() != tiny_model("llama", "causal-lm").config.to_dict()
    hfadapt.save(model, tmp_path / "x")
    hfadapt.load(tmp_path / "x", tiny_model("llama", "causal-lm"))
