"""A call that is refused says so with an error of ours, and leaves the model as it was."""

import pytest
import torch

import hfadapt
from hfadapt.architecture.structure import structure
from hfadapt.errors import HFAdaptError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

LoRA = hfadapt.LoRA


def adapted(kind="bert", head="sequence-classification", method="lora", **options):
    model = tiny_model(kind, head, seed=0)
    hfadapt.attach(model, method, names=("a", "b"), seed=0, **options)
    randomize(model)
    return model


def state(model):
    """All that a refused call may not change."""
    attached = model.__dict__.get("_hfadapt")
    modules = dict(model.named_modules())
    return {
        "weights": {n: (id(p), p.dtype, p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()},
        "modules": {n: (type(m), m.training, sorted(m.__dict__)) for n, m in modules.items()},
        "forwards": {n: m.__dict__.get("forward") for n, m in modules.items()},
        "hooks": {n: (list(m._forward_pre_hooks), list(m._forward_hooks)) for n, m in modules.items()},
        "config": (model.config.to_dict(), model.config._attn_implementation),
        "attached": attached
        and {
            key: repr(getattr(attached, key))
            for key in ("adapters", "compositions", "fusions", "choice", "drop", "label_counts", "steps", "arch")
        },
    }


def refused(model, call, match):
    before = state(model)
    with pytest.raises(HFAdaptError, match=match):
        call(model)
    after = state(model)
    for name, (*facts, value) in before["weights"].items():
        *now, found = after["weights"][name]
        assert now == facts and torch.equal(found.nan_to_num(7), value.nan_to_num(7)), name
    assert after.pop("weights").keys() == before.pop("weights").keys()
    for what, value in before.items():
        assert after[what] == value, what


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        (("prefix", "mam"), {}, "two configs of adapter 'z'"),  # attention was changed for the first
        (("pal", LoRA(2), LoRA(4)), {}, "same place"),  # shared modules were made
        (("seq_bn_inv", LoRA(2), LoRA(4)), {}, "same place"),
        ("mam", {"modules_to_save": ["nothing"]}, "no module of that name"),
        ("mam", {"modules_to_save": 3}, "no names"),
        ("lora", {"seed": "x"}, "bad seed"),
        ("lora", {"seed": 10**30}, "bad seed"),
        ("lora", {"seed": 1.5}, "bad seed"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_attach(method, options, match, fresh):
    model = tiny_model("bert", "sequence-classification", seed=0) if fresh else adapted()
    refused(model, lambda m: hfadapt.attach(m, method, "z", **options), match)
    with torch.no_grad():
        model(**tiny_inputs("bert"), **({} if fresh else {"task_ids": "a"}))


def test_a_map_that_a_refused_method_brought_goes_again(monkeypatch):
    model = tiny_model("t5", "seq2seq-lm", seed=0)
    hfadapt.attach(model, LoRA(2, target_modules="all-linear"), "a", arch=structure(model))
    assert not hfadapt.attachment(model).arch.stacks
    refused(model, lambda m: hfadapt.attach(m, ("seq_bn", LoRA(2), LoRA(4)), "z"), "same place")
    hfadapt.detach(model)
    assert "forward" not in model.encoder.__dict__


@pytest.fixture
def several():
    model = adapted()
    hfadapt.attach(model, "seq_bn", "c")
    hfadapt.attach(model, LoRA(4, dora=True), "d")
    hfadapt.activate(model, "b")
    return model


COMBINED = [
    ({"a": 1.0, "b": 1.0}, {"method": "svd", "r": 10**9}, "so high a rank.*1 to 32"),
    ({"a": 1.0, "b": 1.0}, {"method": "ties", "density": 0.5, "r": 33}, "so high a rank.*1 to 32"),
    ({"a": 1.0}, {"method": "dare_linear", "density": 0.5, "seed": "x"}, "bad seed"),
    ({"a": 1.0}, {"method": "dare_linear", "density": 0.5, "seed": 1.5}, "bad seed"),
    ({"a": 1.0}, {"method": "dare_linear", "density": 0.5, "seed": 10**30}, "bad seed"),
    ({"a": 1.0, "d": 1.0}, {"method": "cat"}, "DoRA"),
    ({"a": 1.0, "c": 1.0}, {"method": "linear"}, "different methods"),
    ({"a": 3e38, "b": 3e38}, {"method": "cat", "heads": False}, "NaN or infinite|not finite"),
]


@pytest.mark.parametrize(("weights", "options", "match"), COMBINED)
def test_combine(several, weights, options, match):
    refused(several, lambda m: hfadapt.combine(m, weights, name="z", **options), match)


def test_compress_to_a_rank_that_no_linear_has(several):
    refused(several, lambda m: hfadapt.compress(m, "a", 33), "so high a rank.*1 to 32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapters_that_diverged_are_not_spread(tmp_path, value):
    model = adapted()
    hfadapt.save(model, tmp_path / "good")
    next(iter(hfadapt.parameters_of(model, "a").values())).data[0, 0] = value
    for call in (
        lambda m: hfadapt.combine(m, {"a": 0.5, "b": 0.5}, method="cat", name="z"),
        lambda m: hfadapt.compress(m, "a", 2),
        lambda m: hfadapt.save(m, tmp_path / "good"),
        lambda m: hfadapt.save_peft(m, tmp_path / "peft", "a"),
        lambda m: hfadapt.export(m, tmp_path / "hub", "a", format="adapterhub"),
    ):
        refused(model, call, "not finite")
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
    hfadapt.load(tmp_path / "good", tiny_model("bert", "sequence-classification", seed=0))
    hfadapt.save(model, tmp_path / "other", "b")
    hfadapt.detach(model, "b")
    refused(model, hfadapt.merge, "not finite")


@pytest.mark.parametrize("call", [hfadapt.detach, hfadapt.freeze, hfadapt.unfreeze, lambda m, n: hfadapt.verify(m, n)])
def test_names(call):
    refused(adapted(), lambda m: call(m, 3), "no names")
    refused(adapted(), lambda m: call(m, ["a", "zz"]), "no adapter 'zz'")


def test_a_name_given_twice_is_detached_once():
    model = adapted()
    hfadapt.detach(model, ["a", "a"])
    assert hfadapt.attachment(model).names == ("b",)


@pytest.mark.parametrize(("kind", "path"), [("t5", "shared"), ("bart", "shared")])
def test_a_module_whose_weights_others_hold_and_which_is_never_called(kind, path):
    model = tiny_model(kind, "seq2seq-lm", seed=0)
    refused(model, lambda m: hfadapt.attach(m, LoRA(2, target_modules=(path,))), f"would never run.*{path}")
    hfadapt.attach(model, LoRA(2, target_modules=("embed_tokens",)))


@pytest.mark.parametrize("kind", ["peft", "adapterhub"])
def test_files_in_another_librarys_format_destroy_no_save_and_hide_no_model(tmp_path, kind):
    model = adapted(method="lora" if kind == "peft" else "seq_bn")
    hfadapt.save(model, tmp_path / "ours")
    tiny_model("bert", "sequence-classification", seed=0).save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, match in (("ours", "adapter of hfadapt's own"), ("model", "holds a model"), ("", "no folder to save to")):
        folder = tmp_path / name if name else ""
        refused(model, lambda m, folder=folder: hfadapt.export(m, folder, "a", format=kind), match)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    hfadapt.export(model, tmp_path / "new", "a", format=kind)


def test_a_head_that_trains_in_place_is_part_of_pefts_files(tmp_path):
    model = adapted(train_head=False)
    model.classifier.requires_grad_(True)
    hfadapt.save_peft(model, tmp_path / "peft", "a")
    refused(model, lambda m: hfadapt.save(m, tmp_path / "ours"), "the base trains")


def test_what_is_no_folder_and_no_model(tmp_path):
    model = adapted()
    hfadapt.save(model, tmp_path / "x")
    refused(model, lambda m: hfadapt.load(None, m), "no folder to load from")
    for wrong in ("bert", type(model), 3):
        with pytest.raises(HFAdaptError, match="is no model"):
            hfadapt.load(tmp_path / "x", wrong)
        with pytest.raises(HFAdaptError, match="no model to map"):
            hfadapt.probe(wrong)
    refused(model, lambda m: hfadapt.probe(m, inputs=[1]), "no inputs")
