"""Every adapter has a head of its own, and copies of its own of other modules; the base's stay as they are."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import hfadapt
from hfadapt.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from hfadapt.errors import AttachError, RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

HEAD = "sequence-classification"
MIXED = ["a", "b", "a"]


def base(kind="bert", head=HEAD, **changes):
    return tiny_model(kind, head, **changes)


def adapted(kind="bert", head=HEAD, names=("a", "b"), seed=7, **options):
    model = base(kind, head)
    hfadapt.attach(model, "lora", names=names, seed=0, **options)
    randomize(model, seed)
    return model


@torch.no_grad()
def run(model, kind="bert", head=HEAD, **more):
    return model(**tiny_inputs(kind, head, padding="right"), **more)[0]


@pytest.fixture
def saved(tmp_path):
    """Folders of one adapter each, trained on models of their own, and the logits there."""
    found = {}
    for number, name in enumerate("ab"):
        model = adapted(names=[name], seed=number)
        found[name] = (hfadapt.save(model, tmp_path / name), run(model))
    return found


def test_a_second_load_leaves_the_first_adapters_head_alone(saved):
    model, before = base(), run(base())
    for folder, _ in saved.values():
        hfadapt.load(folder, model)
    for name, (_, logits) in saved.items():
        assert torch.equal(run(model, task_ids=name), logits)
    mixed = run(model, task_ids=MIXED)
    for row, name in enumerate(MIXED):
        assert torch.equal(mixed[row], saved[name][1][row])
    with hfadapt.active(model, None):
        assert torch.equal(run(model), before)
    hfadapt.detach(model, "a")
    assert torch.equal(run(model, task_ids="b"), saved["b"][1])
    hfadapt.detach(model)
    assert torch.equal(run(model), before)
    assert not any("hfadapt" in key for key in model.state_dict()) and "forward" not in model.classifier.__dict__


CASES = [
    ("bert", HEAD, ()),
    ("roberta", HEAD, ("embeddings",)),
    ("distilbert", HEAD, ("layer.1.ffn",)),
    ("albert", HEAD, ("pooler",)),
    ("deberta-v2", "token-classification", ("LayerNorm",)),
    ("electra", "question-answering", ("word_embeddings",)),
    ("gpt2", "causal-lm", ("lm_head", "wte", "wpe")),
    ("gpt2", HEAD, ("wte",)),
    ("llama", "causal-lm", ("embed_tokens", "norm")),
    ("opt", "causal-lm", ("embed_positions", "fc1")),
    ("t5", "seq2seq-lm", ("lm_head", "encoder.embed_tokens")),
    ("bart", HEAD, ("encoder.embed_positions",)),
    ("vit", "image-classification", ("embeddings",)),
]


@pytest.mark.parametrize("kind, head, modules", CASES, ids=str)
def test_rows_go_through_their_adapters_copies_and_the_base_is_untouched(kind, head, modules):
    before, keys = run(base(kind, head), kind, head), list(base(kind, head).state_dict())
    model = adapted(kind, head, modules_to_save=modules)
    alone = {name: run(model, kind, head, task_ids=name) for name in "ab"}
    assert not torch.allclose(alone["a"], alone["b"], atol=1e-3)
    mixed = run(model, kind, head, task_ids=MIXED)
    for row, name in enumerate(MIXED):
        assert torch.equal(mixed[row], alone[name][row])
    with hfadapt.active(model, None):
        assert torch.equal(run(model, kind, head), before)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for own in hfadapt.own_modules(model, "a").values():
                for parameter in own.parameters():
                    parameter.add_(0)
        assert torch.equal(run(again, kind, head, task_ids=MIXED), mixed)
    hfadapt.detach(model)
    assert torch.equal(run(model, kind, head), before) and list(model.state_dict()) == keys


@pytest.mark.parametrize("kind, head, modules", CASES[:3] + CASES[6:7], ids=str)
def test_a_folder_holds_them_and_brings_them_back(kind, head, modules, tmp_path):
    model = adapted(kind, head, modules_to_save=modules)
    for names in (["a"], ["a", "b"]):
        hfadapt.save(model, tmp_path / "x", names)
        again = hfadapt.load(tmp_path / "x", base(kind, head))
        for name in names:
            assert torch.equal(run(again, kind, head, task_ids=name), run(model, kind, head, task_ids=name))
        assert hfadapt.attachment(again).adapters["a"] == hfadapt.attachment(model).adapters["a"]
        with hfadapt.active(again, None):
            assert torch.equal(run(again, kind, head), run(base(kind, head), kind, head))


def test_a_folder_of_one_head_is_one_that_earlier_releases_read_and_all_its_adapters_get_that_head(tmp_path):
    model = adapted(names=["a"])
    hfadapt.save(model, tmp_path / "x")
    data, tensors = json.loads((tmp_path / "x" / CONFIG_FILE).read_text()), load_file(tmp_path / "x" / WEIGHTS_FILE)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # safetensors 0.4 maps the file, written below
    assert data["format_version"] == 1 and data["head"] == ["classifier"] and "own_modules" not in data
    assert {k for k in tensors if "lora" not in k} == {"head.classifier.weight", "head.classifier.bias"}
    # two adapters and their one head, as the first version of the format had it
    tensors |= {k.replace(".a.", ".b."): 2 * t for k, t in tensors.items() if "lora" in k}
    save_file(tensors, tmp_path / "x" / WEIGHTS_FILE)
    data |= {"adapters": {n: data["adapters"]["a"] for n in "ab"}, "weights_sha256": None}
    (tmp_path / "x" / CONFIG_FILE).write_text(json.dumps(data))
    again = hfadapt.load(tmp_path / "x", base())
    assert torch.equal(run(again, task_ids="a"), run(model))
    for own in (hfadapt.own_modules(again, name)["classifier"] for name in "ab"):
        assert torch.equal(own.weight, tensors["head.classifier.weight"])


def test_only_the_copies_of_the_rows_train_and_freeze_knows_them():
    model = adapted(modules_to_save=["word_embeddings"]).train()
    flags = {n for n in hfadapt.trainable_parameters(model) if ".copies." in n}
    own = {f"{p}.hfadapt.copies.{n}.{k}" for n in "ab" for p, m in hfadapt.own_modules(model, n).items()
           for k, _ in m.named_parameters()}  # fmt: skip
    assert flags == own and len(own) == 6
    model(**tiny_inputs("bert", HEAD), task_ids="a", labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is not None for n, p in hfadapt.parameters_of(model, "a").items() if ".copies." in n)
    assert all(p.grad is None for p in hfadapt.parameters_of(model, "b").values())
    assert all(p.grad is None for n, p in model.named_parameters() if "hfadapt" not in n)
    hfadapt.freeze(model, "a")
    assert not any(".a." in n for n in hfadapt.trainable_parameters(model))


def test_gradients_of_a_mixed_batch_are_those_of_its_rows():
    inputs = tiny_inputs("bert", HEAD)

    def gradients(ids, rows):
        model = adapted().double()
        model({k: v[rows] for k, v in inputs.items()}["input_ids"], task_ids=ids)[0].square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    mixed = gradients(MIXED, [0, 1, 2])
    for name, rows in (("a", [0, 2]), ("b", [1])):
        for key, gradient in gradients(name, rows).items():
            torch.testing.assert_close(mixed[key], gradient, rtol=1e-9, atol=1e-12)


def test_compositions_use_the_last_head_the_mean_of_heads_and_every_head():
    model = adapted()
    a, b = (run(model, task_ids=name) for name in "ab")
    own = hfadapt.own_modules(model, "b")["classifier"]
    seen = []
    handle = own.register_forward_hook(lambda module, args, output: seen.append(output))
    with hfadapt.active(model, hfadapt.Stack("a", "b")):
        assert torch.equal(run(model), seen[-1])
    handle.remove()
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        torch.testing.assert_close(run(model), torch.cat([a, b]), rtol=0, atol=1e-6)
    hfadapt.compose(model, "mean", hfadapt.Average("a", "b", weights=(0.25, 0.75)))
    mean = run(model, task_ids="mean")
    assert torch.equal(run(model, task_ids=["a", "mean", "b"]), torch.stack([a[0], mean[1], b[2]]))


def test_embeddings_of_their_own_under_parallel():
    model = adapted(modules_to_save=["embeddings"])
    apart = torch.cat([run(model, task_ids=name) for name in "ab"])
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        torch.testing.assert_close(run(model), apart, rtol=0, atol=1e-6)


def test_a_fusion_has_a_head_of_its_own(tmp_path):
    model = base()
    hfadapt.attach(model, "pfeiffer", names=["a", "b"])
    randomize(model)
    hfadapt.add_fusion(model, ("a", "b"))
    (head,) = hfadapt.own_modules(model, "a,b").values()
    assert torch.equal(head.weight, model.classifier.weight) and head.weight.requires_grad
    with torch.no_grad():
        head.weight.normal_()
    hfadapt.save(model, tmp_path / "x")
    again = hfadapt.load(tmp_path / "x", base())
    hfadapt.activate(again, hfadapt.Fuse("a", "b"))
    assert torch.equal(run(again), run(model))
    assert torch.equal(run(again, task_ids="a"), run(model, task_ids="a"))
    hfadapt.detach(model, "b")
    assert list(model.classifier.hfadapt.copies) == ["a"]


@pytest.mark.parametrize("modules", [(), ("word_embeddings",)], ids=str)
def test_merge_folds_the_head_in_and_unmerge_takes_it_out(modules):
    model = adapted(names=["a"], modules_to_save=modules)
    before, want = run(base()), run(model)
    merged = hfadapt.merge(model)
    assert not any("hfadapt" in key for key in model.state_dict())
    torch.testing.assert_close(run(model), want, rtol=1e-5, atol=1e-5)
    merged.unmerge()
    assert torch.equal(run(model), want)
    with hfadapt.active(model, None):
        assert torch.equal(run(model), before)


def test_merge_refuses_to_change_what_is_tied():
    model = adapted("gpt2", "causal-lm", names=["a"], modules_to_save=["lm_head"])
    with pytest.raises(AttachError, match="tied to another module's.*transformer.wte"):
        hfadapt.merge(model)


def test_heads_with_other_numbers_of_labels_share_a_model(tmp_path):
    wide = base(num_labels=4)
    wide.bert.load_state_dict(base().bert.state_dict())
    hfadapt.attach(wide, "lora", "wide")
    randomize(wide)
    logits = run(wide)
    hfadapt.save(wide, tmp_path / "wide")
    model = adapted(names=["a"])
    narrow = run(model)
    hfadapt.load(tmp_path / "wide", model)
    assert torch.equal(run(model, task_ids="wide"), logits)
    mixed = run(model, task_ids=["a", "wide", "a"])
    assert mixed.shape == (3, 4) and torch.equal(mixed[1], logits[1])
    assert torch.equal(mixed[[0, 2], :2], narrow[[0, 2]]) and mixed[[0, 2], 2:].eq(float("-inf")).all()
    inputs, labels = tiny_inputs("bert", HEAD, padding="right"), torch.tensor([0, 1, 0])
    model(**inputs, labels=labels, task_ids="a")
    for ids in ("wide", ["a", "wide", "a"]):
        with pytest.raises(RoutingError, match="another number of labels[\\s\\S]*wide: 4 labels"):
            model(**inputs, labels=labels, task_ids=ids)
    hfadapt.detach(model, "a")
    with pytest.raises(AttachError, match="another shape than the base's"):
        hfadapt.merge(model, "wide")


def test_a_module_that_reads_one_table_for_all_rows_cannot_be_mixed():
    model = adapted("t5", "seq2seq-lm", modules_to_save=["relative_attention_bias"])
    run(model, "t5", "seq2seq-lm", task_ids="a")
    inputs = tiny_inputs("t5", "seq2seq-lm", batch=7, length=7)  # as many rows as tokens
    with pytest.raises(RoutingError, match="relative_attention_bias"), torch.no_grad():
        model(**inputs, task_ids=["a", "b", "a", "b", "a", "b", "a"])


def test_a_name_that_no_module_has_and_a_silent_copy_are_refused():
    model = base()
    with pytest.raises(AttachError, match="no module of that name.*'clasifier'.*classifier"):
        hfadapt.attach(model, "lora", modules_to_save=["clasifier"])
    model.bert.register_module("unused", torch.nn.Linear(2, 2))
    with pytest.raises(AttachError, match="would never run"):
        hfadapt.attach(model, "lora", modules_to_save=["unused"])
    assert "_hfadapt" not in model.__dict__ and not any("hfadapt" in key for key in model.state_dict())


def test_without_a_head_of_its_own_an_adapter_uses_the_bases():
    model = base()
    hfadapt.attach(model, "lora", "a", train_head=False)
    hfadapt.attach(model, "lora", "b")
    randomize(model)
    assert hfadapt.own_modules(model, "a") == {} and list(hfadapt.own_modules(model, "b")) == ["classifier"]
    assert not model.classifier.weight.requires_grad
    alone = {name: run(model, task_ids=name) for name in "ab"}
    mixed = run(model, task_ids=MIXED)
    assert all(torch.equal(mixed[row], alone[name][row]) for row, name in enumerate(MIXED))


def test_packed_models_run_them():
    model = adapted()
    want = run(model, task_ids=MIXED)
    hfadapt.pack(model)
    torch.testing.assert_close(run(model, task_ids=MIXED), want, rtol=1e-5, atol=1e-5)
    hfadapt.unpack(model)
    late = hfadapt.pack(base().requires_grad_(False))
    hfadapt.attach(late, "lora", names=["a", "b"], seed=0)
    randomize(late)
    torch.testing.assert_close(run(late, task_ids=MIXED), want, rtol=1e-5, atol=1e-5)
    hfadapt.unpack(late)
    assert torch.equal(run(late, task_ids=MIXED), want)
    hfadapt.detach(late)
    assert torch.equal(run(late), run(base()))
