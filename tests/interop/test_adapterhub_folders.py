"""What AdapterHub's folders say is computed here or refused by name; one that is refused leaves no trace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

import hfadapt
from hfadapt.errors import CheckpointError, ConfigError

SAVED = Path(__file__).resolve().parents[1] / "golden" / "data" / "adapterhub" / "saved"
INPUTS = load_file(str(SAVED / "inputs.safetensors"))


def base(kind=BertModel, **more):
    torch.manual_seed(0)
    return kind.from_pretrained(SAVED / "base", **more).eval()


@torch.no_grad()
def output(model, **call) -> Tensor:
    return model(**INPUTS, **call)[0]


def expected(case: str, key: str = "last_hidden_state") -> Tensor:
    return load_file(str(SAVED / case / "expected.safetensors"))[key]


def near(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item()))


@pytest.fixture
def folder(tmp_path):
    """A copy of a folder with other fields in its config, or other tensors."""

    def copy(case="seq_bn/x", fields=None, tensors=None, **top) -> Path:
        shutil.copytree(SAVED / case, tmp_path / "copy")
        path = tmp_path / "copy" / "adapter_config.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, **top, "config": {**data["config"], **(fields or {})}}))
        if tensors is not None:
            file = str(tmp_path / "copy" / "adapter.safetensors")
            save_file(tensors(load_file(file)), file)
        return tmp_path / "copy"

    return copy


def refused(folder: Path, match: str, model=None, **options) -> None:
    model = base() if model is None else model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        hfadapt.load(folder, model, **options)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("labels", [2, 3])
def test_a_head_of_a_stock_class_is_the_adapters_own_with_its_own_labels(labels):
    model = base(BertForSequenceClassification, num_labels=labels)
    hfadapt.load(SAVED / "head_static" / "with_adapter", model)
    assert near(output(model), expected("head_static", "logits"))
    assert model.classifier.weight.shape[0] == labels


@pytest.mark.parametrize("where", ["with_adapter", "setup"])
def test_a_flexible_head_goes_where_the_models_class_computes_it(where):
    model = base(BertForSequenceClassification)
    hfadapt.load(SAVED / "head_flex" / where, model)
    assert near(output(model), expected("head_flex", "logits"))


@pytest.mark.parametrize(
    ("head", "kind"),
    [("tag", BertForTokenClassification), ("qa", BertForQuestionAnswering), ("mc", BertForMultipleChoice)],
    ids=["tag", "qa", "mc"],
)
def test_a_head_without_an_adapter_is_an_adapter_of_its_head_alone(head, kind):
    model = base(kind)
    hfadapt.load(SAVED / "head_flex" / f"head_{head}", model)
    file = load_file(str(SAVED / "head_flex" / f"head_{head}" / "model_head.safetensors"))
    assert hfadapt.attachment(model).names == (head,)
    own = {p.flatten()[0].item() for p in hfadapt.parameters_of(model, head).values()}
    assert own == {tensor.flatten()[0].item() for tensor in file.values()}


def test_a_head_that_the_models_class_has_not_is_refused_with_the_class_that_has():
    refused(
        SAVED / "head_flex" / "with_adapter", "has no place in BertModel[\\s\\S]*AutoModelForSequenceClassification"
    )
    refused(
        SAVED / "head_static" / "with_adapter", "a head that BertModel has not[\\s\\S]*BertForSequenceClassification"
    )
    refused(SAVED / "head_flex" / "head_tag", "no place in BertForSequenceClassification",
            base(BertForSequenceClassification))  # fmt: skip


def test_a_head_with_another_function_between_its_linears_is_refused(folder):
    place = folder("head_flex/with_adapter")
    head = json.loads((place / "head_config.json").read_text())
    head["config"]["activation_function"] = "relu"
    (place / "head_config.json").write_text(json.dumps(head))
    refused(place, "computes another head", base(BertForSequenceClassification))


def test_the_base_that_a_folder_names_is_loaded(folder):
    place = folder("head_flex/with_adapter", model_name=str(SAVED / "base"))
    model = hfadapt.load(place)
    assert isinstance(model, BertForSequenceClassification) and model.config.num_labels == 3
    assert near(output(model), expected("head_flex", "logits"))


def test_a_pickle_is_opened_only_when_it_is_asked_for():
    refused(SAVED / "mam" / "x", "opened only when it is asked for[\\s\\S]*weights='bin'")
    model = hfadapt.load(SAVED / "mam" / "x", base(), weights="bin")
    assert near(output(model), expected("mam"))
    with pytest.raises(ConfigError, match="bad weights"):
        hfadapt.load(SAVED / "mam" / "x", base(), weights="pickle")


class Spam:
    def __reduce__(self):
        return (print, ("spam",))


@pytest.mark.parametrize(
    "content", [Spam(), {"a": Spam()}, {"a": 1}, [torch.ones(2)], {"a": torch.ones(1).expand(10**9)}]
)
def test_a_pickle_that_is_more_than_tensors_is_refused(folder, content, capsys):
    place = folder("mam/x")
    torch.save(content, place / "pytorch_adapter.bin")
    refused(place, "tensors", weights="bin")
    assert "spam" not in capsys.readouterr().out


def test_a_prefix_that_was_ejected_is_read_from_its_table_whatever_its_config_says(folder):
    place = folder("prefix_tuning_flat/x", fields={"flat": False})
    assert near(output(hfadapt.load(place, base(), weights="bin")), expected("prefix_tuning_flat"))


def test_older_releases_names_of_layers_and_functions_are_read(folder):
    def older(tensors):
        return {k.replace(".output.adapters.", ".output.layer_text_task_adapters."): v for k, v in tensors.items()}

    place = folder(fields={"new_attention_norm": False, "inv_adapter": "nice"}, tensors=older, type="text_task")
    assert near(output(hfadapt.load(place, base())), expected("seq_bn"))


def test_gelu_without_a_version_is_what_is_called_gelu_new_today(folder):
    place = folder(fields={"non_linearity": "gelu"})
    data = json.loads((place / "adapter_config.json").read_text())
    del data["version"]
    (place / "adapter_config.json").write_text(json.dumps(data))
    model = hfadapt.load(place, base())
    assert hfadapt.attachment(model).adapters["seq_bn"].configs[0].non_linearity == "gelu_tanh"


@pytest.mark.parametrize(("version", "scale"), [("adapters.1.0.1", 1), ("adapters.1.1.0", 2), ("adapters.1.3.0", 2)])
def test_releases_that_left_alpha_out_are_read_as_they_trained(folder, version, scale):
    model = hfadapt.load(folder("lora/x", version=version), base())
    assert hfadapt.attachment(model).adapters["lora"].configs[0].scale == scale


def test_a_width_for_each_layer(folder):
    def wider(tensors):
        for key in [k for k in tensors if ".layer.1." in k and ("down" in k or "up.weight" in k)]:
            tensors[key] = torch.cat([tensors[key], torch.zeros_like(tensors[key])], 1 if "up.weight" in key else 0)
        return tensors

    place = folder(fields={"reduction_factor": {"1": 2, "default": 4}}, tensors=wider)
    model = hfadapt.load(place, base())
    assert [c.size for c in hfadapt.attachment(model).adapters["seq_bn"].configs] == [8, 16]
    assert near(output(model), expected("seq_bn"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"phm_layer": True}, "phm_layer=True[\\s\\S]*Compacter"),
        ({"inv_adapter": "glow"}, "inv_adapter='glow'"),
        ({"residual_before_ln": "post_add"}, "post_add"),
        ({"spam": 3}, r"spam=3 \(not known here\)"),
        ({"scaling": "spam"}, "scaling"),
        ({"non_linearity": "leakyrelu"}, "non-linearity"),
        ({"architecture": "reft"}, "architecture 'reft'[\\s\\S]*try"),
        ({"architecture": "prompt_tuning"}, "prompt_tuning[\\s\\S]*PrefixConfig"),
        ({"reduction_factor": 8}, "another width than its config"),
        ({"reduction_factor": 1e-300}, "another width than its config"),
        ({"mh_adapter": True}, "other places than its config"),
        ({"leave_out": [1]}, "other places than its config"),
        ({"ln_after": True}, "lacks a tensor"),
        ({"scaling": "learned"}, "lacks a tensor"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_method_computes_or_no_tensor_shows_is_refused_by_name(folder, fields, match):
    refused(folder(fields=fields), match)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"use_dora": True}, "DoRA as adapters computes it"),
        ({"composition_mode": "scale"}, "scale"),
        ({"vera_d": 0.1}, "vera_d"),
        ({"r": 8}, "do not have the config's rank"),
        ({"attn_matrices": ["q", "k"]}, "other linears than its config"),
        ({"output_lora": True}, "other linears than its config"),
        ({"leave_out": [0]}, "other linears than its config"),
    ],
    ids=str,
)
def test_a_lora_that_is_more_or_other_than_its_tensors_is_refused(folder, fields, match):
    refused(folder("lora/x", fields=fields), match)


def drop(tensors):
    return {key: value for key, value in list(tensors.items())[1:]}


def add(tensors):
    return tensors | {"encoder.layer.0.output.adapters.seq_bn.spam": torch.ones(2)}


def poison(tensors):
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    return tensors


def whole(tensors):
    return {key: value.long() for key, value in tensors.items()}


@pytest.mark.parametrize("change", [drop, add, poison, whole], ids=lambda f: f.__name__)
def test_tensors_that_are_missing_left_over_or_no_numbers_are_refused(folder, change):
    refused(folder(tensors=change), "tensor")


def test_another_base_is_refused(folder):
    from transformers import GPT2Config, GPT2Model

    small = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100)
    refused(SAVED / "seq_bn" / "x", "another base", GPT2Model(small))
    refused(SAVED / "lora" / "x", "other linears|another base", GPT2Model(small))
    narrow = base().config
    narrow.hidden_size, narrow.num_attention_heads = 16, 2
    refused(SAVED / "seq_bn" / "x", "another width", BertModel(narrow))


def test_names_that_are_taken_or_no_names_are_refused(folder):
    model = hfadapt.load(SAVED / "seq_bn" / "x", base())
    refused(SAVED / "seq_bn" / "x", "attached already", model)
    hfadapt.load(SAVED / "seq_bn" / "x", model, name="again")
    assert hfadapt.attachment(model).names == ("seq_bn", "again")
    refused(SAVED / "seq_bn" / "x", "cannot be a name here[\\s\\S]*name='my_a_b'", name="a.b")


def test_a_fusion_needs_its_adapters():
    refused(SAVED / "fusion3_static" / "fusion", "adapters that the model has not[\\s\\S]*a, b, c")


def setup_of(tmp_path, data, names=("a", "b", "c"), case="stack3") -> Path:
    for name in names:
        shutil.copytree(SAVED / case / name, tmp_path / name)
    (tmp_path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": data, "version": "adapters.1.3.0"}))
    return tmp_path


def node(kind, *children, **kwargs):
    inside = [child if isinstance(child, dict) else {"type": "single", "children": [child]} for child in children]
    return {"type": kind, "children": inside, **({"kwargs": kwargs} if kwargs else {})}


@pytest.mark.parametrize("kind", ["Stack", "Parallel"])
def test_several_adapters_and_their_composition(tmp_path, kind):
    model = hfadapt.load(setup_of(tmp_path, node(kind, "a", "b", "c")), base())
    assert near(output(model), expected(f"{kind.lower()}3"))


def test_rows_that_a_setup_gives_to_adapters(tmp_path):
    place = setup_of(tmp_path, node("BatchSplit", "a", "b", "c", batch_sizes=[1, 2, 3]), case="batchsplit3")
    assert near(output(hfadapt.load(place, base())), expected("batchsplit3"))


def test_a_setup_of_tasks_leaves_the_rows_to_task_ids(tmp_path):
    place = setup_of(tmp_path, node("MultiTask", "a", "b", "c"), case="batchsplit3")
    model = hfadapt.load(place, base())
    ids = torch.tensor([0, 1, 1, 2, 2, 2])
    assert near(output(model, task_ids=ids), expected("batchsplit3"))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (node("Average", "a", "b", weights=[0.5, 0.5]), "Average"),
        (node("Split", "a", "b", splits=[1, 2]), "Split"),
        (node("Stack", "a", "../b"), "no folder inside itself"),
        (node("Stack", "a", "spam"), "cannot be read"),
        (node("Spam", "a"), "Spam"),
        (node("Parallel", node("Parallel", "a", "b"), "c"), "cannot hold|Parallel"),
        ({"type": "single", "children": []}, "damaged|described"),
        ({}, "damaged"),
        ([], "damaged"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_setup_that_is_none_is_refused(tmp_path, data, match):
    model = base()
    with pytest.raises(hfadapt.HFAdaptError, match=match):
        hfadapt.load(setup_of(tmp_path, data), model)
    assert not any("hfadapt" in key for key in model.state_dict())


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "nonsense", "7" * 5000, "", '{"config": 3, "name": "x"}'])
def test_a_config_that_is_none_is_our_error(folder, text):
    place = folder()
    (place / "adapter_config.json").write_text(text)
    refused(place, "adapter_config.json|not an hfadapt folder")


WRITTEN = (
    "seq_bn", "double_seq_bn", "par_bn", "seq_bn_inv", "seq_bn_ln_before_after", "adapterdrop_leave_out", "lora",
    "mtl_lora", "prefix_tuning", "prefix_tuning_flat", "mam", "head_static",
)  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_what_was_read_is_written_with_the_librarys_keys_fields_and_numbers(case, tmp_path):
    place = SAVED / case / ("with_adapter" if case == "head_static" else "x")
    kind = "bin" if (place / "pytorch_adapter.bin").exists() else "safetensors"
    cls = BertForSequenceClassification if case == "head_static" else BertModel
    options = {"num_labels": 3} if case == "head_static" else {}
    model = hfadapt.load(place, base(cls, **options), weights=kind)
    hfadapt.export(model, tmp_path / "out", format="adapterhub")

    for safe, pickled in (("adapter", "pytorch_adapter"), ("model_head", "pytorch_model_head")):
        if not (place / f"{safe}.safetensors").exists() and not (place / f"{pickled}.bin").exists():
            continue
        theirs = torch.load(place / f"{pickled}.bin", weights_only=True) if kind == "bin" else None
        theirs = load_file(str(place / f"{safe}.safetensors")) if theirs is None else theirs
        mine = load_file(str(tmp_path / "out" / f"{safe}.safetensors"))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for file in ("adapter_config.json", "head_config.json"):
        if (place / file).exists():
            mine, theirs = (json.loads((folder / file).read_text()) for folder in (tmp_path / "out", place))
            for data in (mine, theirs):
                del data["model_name"]
                for one in (data["config"] or {}).get("configs", [data["config"]]) if data["config"] else ():
                    one.pop("init_weights", None)
            assert mine == theirs
    again = hfadapt.load(tmp_path / "out", base(cls, **options))
    assert torch.equal(output(again), output(model))


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("pal", "this adapter"),
        (hfadapt.LoRA(use_rslora=True), "rslora"),
        (hfadapt.LoRA(target_modules=("output",)), "other linears"),
        (hfadapt.MTLLoRA(r=2), "no diagonals"),
        (hfadapt.MTLLoRA(r=2, task_matrix="diagonal", use_rslora=True), "rslora"),
        (hfadapt.PrefixConfig(form="relu"), "this form of prefixes"),
        (hfadapt.Bottleneck(share=True), "share an adapter"),
        (hfadapt.ParallelConfig(sublayers=("attention",)), "parallel adapter"),
    ],
    ids=str,
)
def test_what_the_librarys_folders_cannot_say_is_refused(method, match, tmp_path):
    model = base()
    hfadapt.attach(model, method)
    with pytest.raises(hfadapt.HFAdaptError, match=rf"cannot say[\s\S]*{match}"):
        hfadapt.export(model, tmp_path / "out", format="adapterhub")
    assert not (tmp_path / "out").exists()


def test_arguments_for_other_libraries_folders_are_refused_for_our_own(tmp_path):
    model = base()
    hfadapt.attach(model, "lora")
    hfadapt.save(model, tmp_path / "own")
    for options in ({"name": "x"}, {"weights": "bin"}):
        with pytest.raises(ConfigError, match="folders of other libraries"):
            hfadapt.load(tmp_path / "own", base(), **options)
    with pytest.raises(hfadapt.HFAdaptError, match="unknown format 'spam'"):
        hfadapt.load(tmp_path / "own", base(), format="spam")
