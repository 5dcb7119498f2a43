"""A folder brings back what its model computed: what was active, where layers were dropped, in which dtype."""

import json

import pytest
import torch
import transformers

import hfadapt
from hfadapt.errors import CheckpointError, HFAdaptError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import toy_model

INPUTS = tiny_inputs("bert", padding="right")
ROWS = [{"input_ids": [1, 2 + i, 3, 4], "attention_mask": [1] * 4, "labels": i % 2} for i in range(8)]


@pytest.fixture
def base(tmp_path):
    tiny_model("bert", "sequence-classification", seed=0).save_pretrained(tmp_path / "base")

    def load(**options):
        return transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", **options).eval()

    return load


@torch.no_grad()
def logits(model):
    return model.eval()(**INPUTS).logits


def fused(model):
    hfadapt.attach(model, "seq_bn", names=("a", "b"))
    hfadapt.add_fusion(model, hfadapt.Fuse("a", "b"))
    hfadapt.activate(model, hfadapt.Fuse("a", "b"))


def composed(node):
    def attach(model):
        hfadapt.attach(model, "seq_bn", names=("a", "b"))
        hfadapt.activate(model, node)

    return attach


def named(model):
    hfadapt.attach(model, "seq_bn", names=("a", "b"))
    hfadapt.compose(model, "both", hfadapt.Stack("a", "b"))
    hfadapt.activate(model, "both")


def dropped(model):
    hfadapt.attach(model, "seq_bn")
    hfadapt.set_adapter_drop(model, 1)


ACTIVE = {
    "fuse": fused,
    "stack": composed(hfadapt.Stack("b", "a")),
    "average": composed(hfadapt.Average("a", "b", weights=(0.25, 0.75))),
    "parallel": composed(hfadapt.Parallel("a", "b")),
    "named": named,
    "dropped": dropped,
}


@pytest.mark.parametrize("attach", ACTIVE.values(), ids=ACTIVE)
@pytest.mark.parametrize("how", ["save", "slim", "whole"])
def test_what_was_active_and_dropped_comes_back(tmp_path, base, attach, how):
    model = base()
    attach(model)
    randomize(model)
    if how == "save":
        hfadapt.save(model, tmp_path / "x")
    else:
        hfadapt.slim_checkpoints(model, how == "slim")
        model.save_pretrained(tmp_path / "x")
    again = hfadapt.load(tmp_path / "x")
    assert hfadapt.attachment(again).active == hfadapt.attachment(model).active
    assert torch.equal(logits(again), logits(model))
    data = json.loads((tmp_path / "x" / ("hfadapt" if how == "whole" else "") / "hfadapt_config.json").read_text())
    assert data["format_version"] == 2  # an older release would leave it out in silence


def test_adapters_that_were_there_stay_active(tmp_path, base):
    for name in ("a", "b"):
        model = base()
        hfadapt.attach(model, "lora", name)
        hfadapt.save(model, tmp_path / name)
    for choose in ("a", None):
        model = hfadapt.load(tmp_path / "a")
        hfadapt.activate(model, choose)
        hfadapt.load(tmp_path / "b", model)
        assert hfadapt.attachment(model).active == choose
        model(**INPUTS)
    model = hfadapt.load(tmp_path / "b", hfadapt.load(tmp_path / "a"))
    with pytest.raises(HFAdaptError, match="none was chosen"):  # as after two attachs
        model(**INPUTS)


@pytest.mark.parametrize("how", ["save", "slim", "whole"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_base_comes_back_in_its_dtype(tmp_path, base, how, dtype):
    for model in (base(dtype=dtype), base().to(dtype)):
        hfadapt.attach(model, "lora")
        randomize(model)
        if how == "save":
            hfadapt.save(model, tmp_path / "x")
        else:
            hfadapt.slim_checkpoints(model, how == "slim")
            model.save_pretrained(tmp_path / "x")
        again = hfadapt.load(tmp_path / "x")
        assert again.dtype == dtype and torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("wrong", ["int64", "nothing", "nn"])
def test_a_dtype_that_is_none_is_named(tmp_path, base, wrong):
    model = base()
    hfadapt.attach(model, "lora")
    hfadapt.save(model, tmp_path / "x")
    data = json.loads((tmp_path / "x" / "hfadapt_config.json").read_text())
    (tmp_path / "x" / "hfadapt_config.json").write_text(json.dumps({**data, "base_dtype": wrong}))
    with pytest.raises(CheckpointError, match=f"dtype is none.*{wrong}"):
        hfadapt.load(tmp_path / "x")


def test_a_multi_task_base_that_trains_comes_back_in_its_dtype(tmp_path):
    model = toy_model(method="lora", train_base=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "x")
    again = hfadapt.MultiTaskModel.from_pretrained(tmp_path / "x")
    assert again.base.dtype == torch.bfloat16


@pytest.mark.parametrize("trained", ["all", "one"])
def test_adapters_alone_of_a_base_that_trains_are_not_written(tmp_path, base, trained):
    model = base()
    hfadapt.attach(model, "lora", freeze_base=trained == "one")
    model.bert.pooler.dense.weight.requires_grad_(True)
    for write in (hfadapt.save, hfadapt.save_peft, lambda m, f: hfadapt.export(m, f, format="adapterhub")):
        with pytest.raises(CheckpointError, match=r"the base trains.*save_pretrained"):
            write(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    model.bert.pooler.dense.weight.data += 1
    model.save_pretrained(tmp_path / "x")
    assert torch.equal(logits(hfadapt.load(tmp_path / "x")), logits(model))
    model.requires_grad_(False)
    hfadapt.save(model, tmp_path / "frozen")


@pytest.mark.parametrize("slim", [False, True])
def test_the_best_checkpoint_is_taken_up_at_the_end(tmp_path, base, slim):
    model = base()
    hfadapt.attach(model, "mam", names=("a", "b"), seed=0)
    hfadapt.activate(model, "b")
    hfadapt.slim_checkpoints(model, slim)
    saved = {}

    class Keep(transformers.TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved[state.global_step] = {key: t.clone() for key, t in model.state_dict().items()}

    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.5,
        report_to=[],
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS, callbacks=[Keep()])
    trainer.train()
    best = saved[trainer.state.best_global_step]
    assert len(saved) == 3 and all(torch.equal(t, best[key]) for key, t in model.state_dict().items())
    again = hfadapt.load(trainer.state.best_model_checkpoint)
    assert torch.equal(logits(again), logits(model))
