"""LoRA of parameters that modules read themselves: experts in one tensor, by row, trained, merged, saved, peft's."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, DynamicCache

import hfadapt
from hfadapt.errors import AttachError, CheckpointError, CompositionError, RoutingError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.every_type import tiny_of_type
from tests.unit.releases import CACHE, checkpoint_activations, older

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
IDS = torch.randint(4, 40, (4, 6), generator=torch.Generator().manual_seed(1))


@functools.cache
def made(model_type):
    torch.manual_seed(0)
    return tiny_of_type(model_type).eval()


def base(model_type="mixtral", experts="eager", dtype=torch.float64):
    model = copy.deepcopy(made(model_type)).to(dtype)
    model.set_experts_implementation(experts)
    return model


def answer(model, **more):
    return model(input_ids=IDS, **more)[0]


def adapted(model, targets=EXPERTS):
    for number, name in enumerate(("a", "b")):
        config = hfadapt.LoRA(2 + number, 30.0 + number, targets, init="normal")
        hfadapt.attach(model, config, name, train_head=False)
    return model


def by_hand(model, fresh, *names):
    """The base with the updates in its weights, as a function of the adapters' tensors."""
    tensors = dict(fresh.named_parameters())
    for name in names:
        for _, delta in deltas_of(model, name):
            own, path = delta.own(name), f"{delta.site.leaf}.{delta.site.parameter}"
            update = own.config.scale * torch.einsum("eor,eri->eoi", own.lora_b, own.lora_a)
            turned = getattr(model.get_submodule(delta.site.leaf), "is_transposed", False)
            tensors[path] = tensors[path] + (update.transpose(1, 2) if turned else update).view_as(tensors[path])
    return torch.func.functional_call(fresh, tensors, (), {"input_ids": IDS})[0]


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_rows_and_gradients_are_those_of_the_updated_weights(model_type):
    model = adapted(base(model_type))
    stock = answer(base(model_type))
    mixed = answer(model, task_ids=["a", None, "b", "a"])
    assert torch.equal(mixed[1], stock[1])
    want = torch.stack([by_hand(model, base(model_type), name)[row] for row, name in ((0, "a"), (2, "b"), (3, "a"))])
    torch.testing.assert_close(mixed[[0, 2, 3]], want, rtol=0, atol=1e-10)
    assert not torch.allclose(want, stock[[0, 2, 3]], atol=1e-3)
    trained = list(hfadapt.trainable_parameters(model).values())
    mine = torch.autograd.grad(mixed[[0, 2, 3]].square().sum(), trained)
    for one, other in zip(mine, torch.autograd.grad(want.square().sum(), trained), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_of_running_experts_runs_them_updated(experts):
    model = adapted(base(experts=experts, dtype=torch.float32))
    mixed = answer(model, task_ids=["a", "b", None, "b"])
    want = adapted(base())
    for path, parameter in hfadapt.trainable_parameters(model).items():
        want.get_parameter(path).data.copy_(parameter)
    expected = answer(want, task_ids=["a", "b", None, "b"]).float()
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


def test_detached_merged_unmerged_saved_and_loaded(tmp_path):
    model, stock = adapted(base()), base()
    want = answer(model, task_ids="a")
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, base())
    assert torch.equal(answer(again, task_ids="b"), answer(model, task_ids="b"))
    hfadapt.detach(again, ["b"])
    merged = hfadapt.merge(again)
    torch.testing.assert_close(answer(again), want, rtol=0, atol=1e-12)
    merged.unmerge()
    assert torch.equal(answer(again), want)
    hfadapt.detach(model)
    assert all(torch.equal(t, stock.state_dict()[k]) for k, t in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(answer(model), answer(stock))


def test_updates_of_several_adapters_add_up():
    model = adapted(base())
    with hfadapt.active(model, hfadapt.Stack("a", "b")):
        torch.testing.assert_close(answer(model), by_hand(model, base(), "a", "b"), rtol=0, atol=1e-10)
    with hfadapt.active(model, hfadapt.Average("a", "b", weights=[1.0, 0.0])):
        torch.testing.assert_close(answer(model), answer(model, task_ids="a"), rtol=0, atol=1e-10)
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        torch.testing.assert_close(answer(model)[4:], answer(model, task_ids="b"), rtol=0, atol=1e-10)


def test_generation_with_a_cache_and_checkpointing_run_them_too():
    model = adapted(base())
    rows = ["a", "b", None, "a"]
    cache = {CACHE: DynamicCache(config=model.config)}
    parts = [model(input_ids=ids, task_ids=rows, **cache)[0] for ids in (IDS[:, :4], IDS[:, 4:5], IDS[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, 1), answer(model, task_ids=rows), rtol=0, atol=1e-6)
    grads = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            checkpoint_activations(model)
        model.zero_grad()
        answer(model, task_ids=rows).square().sum().backward()
        grads.append([p.grad.clone() for p in hfadapt.trainable_parameters(model).values()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_copy_and_a_pickle_stay_independent():
    model = adapted(base())
    want = answer(model, task_ids="a")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answer(other, task_ids="a"), want)
        for parameter in hfadapt.trainable_parameters(other).values():
            parameter.data.zero_()
        assert torch.equal(answer(other, task_ids="a"), answer(base()))
    assert torch.equal(answer(model, task_ids="a"), want)


def of_peft(folder, model_type="mixtral", **more):
    theirs = get_peft_model(base(model_type, dtype=torch.float32), LoraConfig(r=3, lora_alpha=5, **more)).eval()
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    ("model_type", "modules", "parameters"),
    [
        ("mixtral", ["q_proj"], [*EXPERTS]),
        ("gpt_oss", [], [*EXPERTS]),
        ("qwen3_moe", ["v_proj"], ["experts.down_proj", "mlp.gate.weight"]),
    ],
)
def test_peft_reads_and_writes_the_same(model_type, modules, parameters, tmp_path):
    if model_type != "gpt_oss" and older("peft", "0.19.1"):
        pytest.skip("peft before 0.19.1 lays the factors of stacked matrices the other way round, which is refused")
    more = {"rank_pattern": {"down_proj": 2}} if model_type == "gpt_oss" else {}
    theirs = of_peft(tmp_path / "theirs", model_type, target_modules=modules, target_parameters=parameters, **more)
    fresh = base(model_type, dtype=torch.float32)
    with torch.no_grad():
        want = answer(theirs)
        mine = hfadapt.load(tmp_path / "theirs", base(model_type, dtype=torch.float32))
        torch.testing.assert_close(answer(mine), want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(want, answer(fresh), atol=1e-3)
        hfadapt.export(mine, tmp_path / "mine", format="peft")
        again = PeftModel.from_pretrained(fresh, tmp_path / "mine").eval()
        torch.testing.assert_close(answer(again), want, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(older("peft", "0.19.1"), reason="refused for the layout of its factors, before all else")
def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    of_peft(tmp_path, target_modules=[], target_parameters=[*EXPERTS])
    config, file = tmp_path / "adapter_config.json", str(tmp_path / "adapter_model.safetensors")
    said, tensors = json.loads(config.read_text()), load_file(file)
    model = base(dtype=torch.float32)

    def refused(match, tensors=tensors, **fields):
        config.write_text(json.dumps({**said, **fields}))
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=match):
            hfadapt.load(tmp_path, model)
        assert not hasattr(model, "_hfadapt")

    refused("announces parameters", target_parameters=[*EXPERTS, "router.weight"])
    refused("other sizes", r=4)
    refused("damaged.*target_parameters", target_parameters="experts.gate_up_proj")
    refused("no such LoRA of parameters", lora_dropout=0.1)
    key = next(iter(tensors))
    refused("lacks a parameter", tensors={k: v for k, v in tensors.items() if k != key})
    refused("", tensors={**tensors, key: tensors[key] * float("nan")})
    refused("", target_parameters=None)


@pytest.mark.parametrize(
    ("version", "refused"), [("0.19.0", True), ("0.18", True), (None, True), ("0.19.1", False), ("1.0.dev1", False)]
)
def test_square_stacks_of_a_peft_that_laid_them_otherwise_are_refused(tmp_path, version, refused):
    """Their sizes do not tell the layouts apart."""
    config = copy.deepcopy(made("mixtral").config)
    config.intermediate_size = config.hidden_size
    theirs = get_peft_model(
        AutoModel.from_config(config), LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"])
    )
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    said = {key: value for key, value in json.loads(file.read_text()).items() if key != "peft_version"}
    file.write_text(json.dumps({**said, **({} if version is None else {"peft_version": version})}))
    model = AutoModel.from_config(config)
    if refused:
        with pytest.raises(CheckpointError, match="other way round.*merge_and_unload"):
            hfadapt.load(tmp_path, model)
        assert not hasattr(model, "_hfadapt")
    else:
        hfadapt.load(tmp_path, model)


@pytest.mark.parametrize("more", [{"dora": True}, {"bias": True}, {"dropout": 0.1}])
def test_what_a_parameter_cannot_have_is_refused(more):
    with pytest.raises(AttachError, match="A and B alone"):
        hfadapt.attach(base(), hfadapt.LoRA(target_modules=EXPERTS, **more))


def test_what_cannot_be_combined_or_chosen_is_said():
    model = adapted(base())
    with pytest.raises(CompositionError, match="cannot be combined"):
        hfadapt.combine(model, {"a": 1.0, "b": 1.0}, method="cat", name="c")
    with pytest.raises(AttachError, match="matched nothing"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("experts.gate_proj",)), "d")
    assert {delta.site.layer for _, delta in deltas_of(adapted(base(), ("layers.1.mlp.experts.down_proj",)), "a")} == {
        1
    }
    other = base()
    hfadapt.attach(other, hfadapt.LoRA(target_modules=("down_proj",), layers=(0,)), train_head=False)
    assert [delta.site.leaf for _, delta in deltas_of(other, "default")] == ["layers.0.mlp.experts"]


class Gathers(nn.Module):
    """Reads all rows in one, so that no row can be told apart, and has a list of weights that torch made before."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="gathers")
        self.mix = Mix()
        self.memory = nn.LSTM(4, 4)

    def forward(self, x):
        return self.mix(x.reshape(1, -1, 4)).reshape(x.shape) + self.memory(x)[0]


class Borrowed(Gathers):
    """Reads the parameter of a module from outside, which runs and reads nothing."""

    def forward(self, x):
        return self.mix(x, read=False) @ self.mix.table


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x, read=True):
        return x @ self.table if read else x


def test_where_rows_cannot_be_told_apart_one_adapter_a_batch_runs():
    torch.manual_seed(0)
    model, given = Gathers(), torch.randn(3, 5, 4)
    hfadapt.attach(model, hfadapt.LoRA(2, 4.0, ("mix.table",), init="normal"), names=["a", "b"])
    randomize(model)
    assert not torch.allclose(model(given, task_ids="a"), model(given, task_ids="b"))
    with pytest.raises(RoutingError, match="cannot be told apart"):
        model(given, task_ids=["a", "b", "a"])
    with pytest.raises(AttachError, match="no linears, and nothing else"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("memory.weight_ih_l0",)), "c")


class ByRow(Gathers):
    def forward(self, x):
        return self.mix(x).tanh()


def test_a_compiled_model_runs_them_updated():
    torch.manual_seed(0)
    model, given, rows = ByRow(), torch.randn(3, 5, 4), ["a", None, "b"]
    hfadapt.attach(model, hfadapt.LoRA(2, 4.0, ("mix.table",), init="normal"), names=["a", "b"])
    randomize(model)
    want = model(given, task_ids=rows)
    torch.testing.assert_close(torch.compile(model, backend="eager")(given, task_ids=rows), want)
    assert not torch.allclose(want, model(given, task_ids=[None] * 3))


def test_a_parameter_that_its_module_does_not_read_is_said():
    model, given = Borrowed(), torch.randn(3, 5, 4)
    hfadapt.attach(model, hfadapt.LoRA(2, 4.0, ("mix.table",)))
    with pytest.raises(AttachError, match="never run.*mix"):
        model(given)
    with pytest.raises(CompositionError, match="changes weights"):
        hfadapt.add_fusion(adapted(base()), ["a", "b"])


def test_a_module_whose_forward_was_replaced_is_refused():
    model = base()
    experts = model.get_submodule("layers.0.mlp.experts")
    own = experts.forward  # a wrapper of it; what is bound itself, as by a kernel that does not load, is no other
    experts.forward = lambda *given: own(*given)
    with pytest.raises(AttachError, match="in the place of a module's forward"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=EXPERTS))
    assert not hasattr(model, "_hfadapt")
