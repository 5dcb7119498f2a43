"""What Trainer and other libraries save of an adapted stock model comes back adapted."""

import copy
import logging
import pickle
import shutil
import types

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import older

INPUTS = tiny_inputs("bert", padding="right")
ROWS = [{"input_ids": [1, 2 + i, 3, 4], "attention_mask": [1] * 4, "labels": i % 2} for i in range(8)]


def base():
    return tiny_model("bert", "sequence-classification", seed=0)


def named(tmp_path):
    """A base that ``from_pretrained`` finds again by its name."""
    base().save_pretrained(tmp_path / "base")
    return transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")


def adapted(model=None):
    model = base() if model is None else model
    hfadapt.attach(model, "mam", names=["a", "b"])
    randomize(model)
    torch.nn.init.normal_(model.classifier.weight)
    hfadapt.activate(model, "b")
    return model.eval()


@torch.no_grad()
def logits(model):
    return model.eval()(**INPUTS).logits


def trainer(model, folder, **options):
    args = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, report_to=[], use_cpu=True, save_steps=2, **options
    )
    return transformers.Trainer(model, args, train_dataset=ROWS)


def test_what_save_model_wrote_comes_back_adapted_with_its_base(tmp_path):
    model = adapted()
    model.bert.embeddings.word_embeddings.weight.data += 1  # a base that is in no other file
    trainer(model, tmp_path / "out").save_model(str(tmp_path / "x"))
    again = hfadapt.load(tmp_path / "x")
    assert hfadapt.attachment(again).names == ("a", "b") and hfadapt.attachment(again).active == "b"
    assert torch.equal(logits(again), logits(model))
    given = base()
    given.load_state_dict({k: v for k, v in model.state_dict().items() if k in given.state_dict()})
    assert torch.equal(logits(hfadapt.load(tmp_path / "x", given)), logits(model))


def test_a_base_with_other_weights_than_the_saved_one_is_refused(tmp_path):
    adapted().save_pretrained(tmp_path)
    other = base()
    other.bert.encoder.layer[0].output.dense.weight.data += 1
    with pytest.raises(CheckpointError, match=r"another base than this one.*layer.0.output.dense.weight"):
        hfadapt.load(tmp_path, other)
    assert "_hfadapt" not in other.__dict__


def test_stock_from_pretrained_says_that_adapters_were_left_out(tmp_path, caplog):
    model = adapted()
    model.save_pretrained(tmp_path)
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        stock = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert "ADAPTERS_ARE_LEFT_OUT.load_this_folder_with.hfadapt_load" in caplog.text
    assert not any("hfadapt" in key for key in stock.state_dict())


def test_shards_are_read_too(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits(hfadapt.load(tmp_path)), logits(model))


def test_copies_and_pickles_save_themselves_and_detach_ends_it(tmp_path):
    model = adapted()
    for name, twin in (("copy", copy.deepcopy(model)), ("pickle", pickle.loads(pickle.dumps(model)))):
        randomize(twin)
        twin.save_pretrained(tmp_path / name)
        assert torch.equal(logits(hfadapt.load(tmp_path / name)), logits(twin))
    hfadapt.detach(model)
    assert "save_pretrained" not in model.__dict__ and not model._load_state_dict_pre_hooks
    model.save_pretrained(tmp_path / "plain")
    assert not any("hfadapt" in k or "ADAPT" in k for k in load_file(tmp_path / "plain" / "model.safetensors"))


@pytest.mark.parametrize("slim", [False, True])
def test_training_resumes_to_the_bit(tmp_path, slim, caplog):
    def run(folder, resume=None, **options):
        torch.manual_seed(0)
        model = named(tmp_path)
        hfadapt.attach(model, "lora", seed=1)
        hfadapt.slim_checkpoints(model, slim)
        trainer(model, folder, max_steps=4, **options).train(resume_from_checkpoint=resume)
        return model

    whole = run(tmp_path / "one")
    transformers.utils.logging.enable_propagation()
    again = run(tmp_path / "two", resume=str(tmp_path / "one" / "checkpoint-2"))
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in whole.state_dict().items())
    assert "missing keys" not in caplog.text and "unexpected keys" not in caplog.text
    loaded = hfadapt.load(tmp_path / "one" / "checkpoint-4")
    assert torch.equal(logits(loaded), logits(whole))


def test_a_slim_checkpoint_holds_adapter_and_head_alone(tmp_path):
    model = adapted(named(tmp_path))
    hfadapt.slim_checkpoints(model)
    model.save_pretrained(tmp_path / "x")
    keys = load_file(tmp_path / "x" / "model.safetensors")
    assert all("hfadapt" in k or k.startswith(("head.classifier.", "vocabulary.")) for k in keys)
    assert {path.name for path in (tmp_path / "x").glob("*.safetensors")} == {"model.safetensors"}
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "x")
    assert torch.equal(logits(again), logits(model))


def test_a_base_that_trains_is_saved_whole_all_the_same(tmp_path):
    model = base()
    hfadapt.attach(model, "lora", freeze_base=False)
    hfadapt.slim_checkpoints(model)
    model.save_pretrained(tmp_path)
    assert any("word_embeddings" in k for k in load_file(tmp_path / "model.safetensors"))
    with pytest.raises(AttachError, match="no adapter"):
        hfadapt.slim_checkpoints(base())


def test_what_sentence_transformers_saved_comes_back_adapted(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from hfadapt.testing.toy import tiny_tokenizer

    tiny_model("bert").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    inner = model[0].model if hasattr(model[0], "model") else model[0].auto_model
    hfadapt.attach(inner, "lora")
    randomize(inner)
    model.save(str(tmp_path / "saved"))
    again = hfadapt.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.eval()(**INPUTS)[0], inner.eval()(**INPUTS)[0])
    # the library's own folder, with the adapters put back into it
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    hfadapt.load(tmp_path / "saved", loaded[0].model if hasattr(loaded[0], "model") else loaded[0].auto_model)
    assert (loaded.encode(["w1 w2"]) == model.encode(["w1 w2"])).all()


def test_a_whole_save_over_a_slim_one_and_the_other_way_round_leave_nothing_of_the_older(tmp_path):
    model = adapted(named(tmp_path))
    for slim in (True, False, True, True, False, False):
        randomize(model)
        hfadapt.slim_checkpoints(model, slim)
        model.save_pretrained(tmp_path / "x", **({} if slim else {"max_shard_size": "20KB"}))
        names = {path.name for path in (tmp_path / "x").iterdir()}
        assert ("hfadapt" in names) is not slim and ("hfadapt_config.json" in names) is slim, names
        assert ("model.safetensors.index.json" in names) is not slim
        assert torch.equal(logits(hfadapt.load(tmp_path / "x")), logits(model))
    model.save_pretrained(tmp_path / "x")  # one file after many
    assert "model.safetensors.index.json" not in {path.name for path in (tmp_path / "x").iterdir()}
    assert torch.equal(logits(hfadapt.load(tmp_path / "x")), logits(model))


def test_a_slim_save_does_not_replace_the_only_copy_of_its_base(tmp_path):
    adapted().save_pretrained(tmp_path / "x")
    model = hfadapt.load(tmp_path / "x")
    hfadapt.slim_checkpoints(model)
    with pytest.raises(CheckpointError, match=r"base of this very model.*try: another folder"):
        model.save_pretrained(tmp_path / "x")
    model = adapted(named(tmp_path))
    hfadapt.slim_checkpoints(model)
    with pytest.raises(CheckpointError, match="a model that hfadapt did not write"):
        model.save_pretrained(tmp_path / "base")
    transformers.AutoModel.from_pretrained(tmp_path / "base")


def test_a_save_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    model = adapted()
    model.save_pretrained(tmp_path / "x")
    before = logits(model)
    randomize(model)
    monkeypatch.setattr("hfadapt.adapters.save.write_files", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(CheckpointError, match="nothing was changed"):
        model.save_pretrained(tmp_path / "x")
    assert torch.equal(logits(hfadapt.load(tmp_path / "x")), before)


def test_adapters_that_a_later_save_left_behind_are_not_loaded_with_it(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path / "x")
    hfadapt.detach(model)
    model.save_pretrained(tmp_path / "x")
    for given in (None, base()):
        with pytest.raises(CheckpointError, match="earlier save than the model"):
            hfadapt.load(tmp_path / "x", given)


@pytest.mark.parametrize("slim", [False, True])
def test_weights_that_were_gathered_from_shards_are_the_ones_that_are_saved(tmp_path, slim):
    model = adapted(named(tmp_path))
    hfadapt.slim_checkpoints(model, slim)
    gathered = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wanted = logits(model)
    randomize(model)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path / "x", state_dict=gathered)
    assert torch.equal(logits(hfadapt.load(tmp_path / "x")), wanted)


def test_ranks_that_do_not_save_write_nothing(tmp_path):
    model = adapted(named(tmp_path))
    for slim in (False, True):
        hfadapt.slim_checkpoints(model, slim)
        model.save_pretrained(tmp_path / "x", False)
        written = {path.name for path in (tmp_path / "x").glob("*")}
        # Before 5.24 every rank writes the weights of a whole model.
        assert written <= (set() if slim or not older("transformers", "5.24") else {"model.safetensors"})
        shutil.rmtree(tmp_path / "x", ignore_errors=True)


@pytest.mark.parametrize("slim", [False, True])
def test_what_is_pushed_holds_the_adapters(tmp_path, monkeypatch, slim):
    model = adapted(named(tmp_path))
    hfadapt.slim_checkpoints(model, slim)
    pushed = []

    def upload(self, folder, repo_id, **options):
        pushed.append((repo_id, options["commit_message"], logits(hfadapt.load(folder))))

    def create_repo(repo_id, **options):
        return types.SimpleNamespace(repo_id=f"me/{repo_id}")

    hub = types.SimpleNamespace(create_repo=create_repo)
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub, raising=False)
    for module in ("utils.hub", "modeling_utils"):  # earlier releases call it by its name
        monkeypatch.setattr(f"transformers.{module}.create_repo", create_repo, raising=False)
    card = types.SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(transformers.PreTrainedModel, "_upload_modified_files", upload)
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="new")
    model.push_to_hub("other")
    assert [(repo, message) for repo, message, _ in pushed] == [("me/mine", "new"), ("me/other", None)]
    assert all(torch.equal(found, logits(model)) for *_, found in pushed)


def test_a_head_that_a_bare_model_cannot_take_is_said(tmp_path, caplog):
    classifier = tiny_model("bert", "sequence-classification", seed=0)
    hfadapt.attach(classifier, "lora", seed=0)
    hfadapt.save(classifier, tmp_path / "saved")
    bare = tiny_model("bert", seed=0)
    with caplog.at_level("WARNING", logger="hfadapt"):
        hfadapt.load(tmp_path / "saved", model=bare)
    assert (
        "BertModel has no head: the folder's (head.classifier.bias, head.classifier.weight) is left out" in caplog.text
    )
