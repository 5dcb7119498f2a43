"""A delta that does what it may not is found when it is attached, and named; our own deltas are not."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt import hookimpl, plugins
from hfadapt.errors import AttachError
from hfadapt.method import Method, Place
from hfadapt.plugins import loading
from hfadapt.runtime.attention import AttentionDelta
from hfadapt.testing.tiny import tiny_model


@pytest.fixture
def register(monkeypatch):
    """Register a method as an installed distribution does."""

    def put(method):
        module = types.ModuleType("some_plugin")
        module.register_methods = hookimpl(lambda registry: registry.add("odd", method))
        dist = types.SimpleNamespace(name="mine-dist", version="1.2")
        entry = types.SimpleNamespace(name="mine", value="mine_module", dist=dist, load=lambda: module)
        monkeypatch.setattr(loading, "entry_points", lambda group: [entry] if group == "hfadapt" else [])
        plugins.reload()

    yield put
    monkeypatch.undo()
    plugins.reload()


class Odd(hfadapt.MethodConfig):
    method = "odd"


class OddDelta(hfadapt.Delta):
    """Adds a vector to the rows of its adapters, save for what ``fault`` says."""

    fault = staticmethod(lambda value, changed, rows: changed)

    def init_weights(self, weights, config, shared):
        weights.vector = self.parameter((self.site.width,), nn.init.normal_)

    def forward(self, value, source, rows):
        vector = rows.gather(self.weights("vector", rows.names), 0.0).unsqueeze(1)
        return self.fault(value, value + vector, rows)


class OddMethod(Method):
    name = "odd"
    config_class = Odd

    def place(self, config, arch, model):
        for layer in hfadapt.select_layers(config, arch):
            yield Place(hfadapt.method.sites.ffn_output(layer), OddDelta)


def one_for_all(value, changed, rows):
    return value + (changed - value)[:1]


def in_place(value, changed, rows):
    value[rows.batch.ids < 0] += 1
    return value


def crash(value, changed, rows):
    raise ValueError("not today")


FAULTS = {
    "not a tensor": lambda value, changed, rows: None,
    "a tensor of shape": lambda value, changed, rows: changed[:, :1],
    "of shape": lambda value, changed, rows: changed.mean(1),
    "of torch.float64": lambda value, changed, rows: changed.double(),
    "NaN": lambda value, changed, rows: changed * float("nan"),
    "infinite": lambda value, changed, rows: changed / 0,
    "NaN or": lambda value, changed, rows: torch.cat([changed[:1], changed[1:] * float("nan")]),
    "rows without an adapter changed": lambda value, changed, rows: changed + 1e-3,
    "without an adapter changed": one_for_all,
    "in place": in_place,
    "from the same rows in a batch of": lambda value, changed, rows: value + (changed - value) * len(rows.names),
    "raised ValueError: not today": crash,
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_delta_that_does_what_it_may_not_fails_verify(register, monkeypatch, message):
    register(OddMethod())
    model = tiny_model("bert")
    hfadapt.attach(model, Odd(), names=["a", "b"])
    hfadapt.detach(model)
    monkeypatch.setattr(OddDelta, "fault", staticmethod(FAULTS[message]))
    names = ["a", "b"] if "same rows" in message else ["a"]
    with pytest.raises(AttachError, match=rf"OddDelta; method 'odd' of mine \(mine-dist 1\.2\).*{message}"):
        hfadapt.attach(model, Odd(), names=names)
    with pytest.raises(AttachError, match="no adapter is attached"):
        hfadapt.attachment(model)


class OddAttention(AttentionDelta):
    """Shifts the attention's output of its adapters' rows, save for what ``fault`` says."""

    fault = staticmethod(lambda value, changed, rows: (changed, None))

    def init_weights(self, weights, config, shared):
        weights.shift = self.parameter((1,), nn.init.normal_)

    def forward(self, call, rows, proceed):
        value, _ = proceed()
        shift = rows.gather(self.weights("shift", rows.names), 0.0).view(-1, 1, 1, 1)
        return self.fault(value, value + shift, rows)


class OddAttentionMethod(OddMethod):
    def place(self, config, arch, model):
        for layer in hfadapt.select_layers(config, arch):
            yield Place(hfadapt.method.sites.attention_core(layer), OddAttention)


ATTENTION_FAULTS = {
    "NoneType, not a tuple": lambda value, changed, rows: None,
    "Tensor, not a tuple": lambda value, changed, rows: changed,
    "NoneType, not a tensor": lambda value, changed, rows: (None, None),
    "of shape": lambda value, changed, rows: (changed.transpose(1, 2), None),
    "of torch.float64": lambda value, changed, rows: (changed.double(), None),
    "NaN": lambda value, changed, rows: (changed.masked_fill(rows.batch.ids.view(-1, 1, 1, 1) < 0, float("nan")), None),
    "rows without an adapter changed": lambda value, changed, rows: (
        torch.where(rows.batch.ids.view(-1, 1, 1, 1) < 0, value * (1 + 1e-6), changed),
        None,
    ),
    "from the same rows in a batch of 'a' alone": lambda value, changed, rows: (
        torch.where(rows.batch.ids.view(-1, 1, 1, 1) < 0, value, changed + len(rows.names)),
        None,
    ),
    "raised ValueError: not today": crash,
}


@pytest.mark.parametrize("message", ATTENTION_FAULTS)
def test_a_delta_in_attention_that_does_what_it_may_not_fails_verify(register, monkeypatch, message):
    register(OddAttentionMethod())
    model = tiny_model("bert")
    hfadapt.attach(model, Odd(), names=["a", "b"])
    hfadapt.detach(model)
    monkeypatch.setattr(OddAttention, "fault", staticmethod(ATTENTION_FAULTS[message]))
    with pytest.raises(AttachError, match=rf"OddAttention; method 'odd' of mine.*{message}"):
        hfadapt.attach(model, Odd(), names=["a", "b"])


class WritingAttention(OddAttention):
    """Computes what it may, and writes into the queries that it was given."""

    def forward(self, call, rows, proceed):
        made = super().forward(call, rows, proceed)
        call.query.mul_(1 + 1e-3)
        return made


def test_a_delta_in_attention_that_writes_into_what_it_reads_fails_verify(register):
    class Method(OddMethod):
        def place(self, config, arch, model):
            yield Place(hfadapt.method.sites.attention_core(hfadapt.select_layers(config, arch)[0]), WritingAttention)

    register(Method())
    with pytest.raises(AttachError, match="WritingAttention; method 'odd' of mine.*changed in place"):
        hfadapt.attach(tiny_model("bert"), Odd(), names=["a", "b"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["llama", "opt", "qwen2"])
@pytest.mark.parametrize(
    "configs",
    [
        ("prefix", "prefix"),
        ("mam", "unipelt"),
        (hfadapt.PrefixConfig(3), hfadapt.PrefixConfig(9, form="relu", query_norm=True)),
    ],
    ids=["prefix", "mam", "forms"],
)
def test_our_own_deltas_in_attention_pass_verify(configs, model_type, attention):
    model = tiny_model(model_type, attn_implementation=attention).bfloat16()
    for name, config in zip("ab", configs, strict=True):
        hfadapt.attach(model, config, name)
    assert hfadapt.verify(model) > 0


@pytest.mark.parametrize("method", ["odd", "lora"])
def test_a_head_that_takes_one_row_alone_is_no_fault_of_an_adapters(register, method):
    register(OddMethod())
    model = tiny_model("gpt2", head="sequence-classification")
    model.config.pad_token_id = None
    hfadapt.attach(model, method)
    assert hfadapt.attachment(model).names == ("default",)


@pytest.mark.parametrize(
    "makes", [lambda site: None, lambda site: nn.Linear(2, 2), OddAttention], ids=["None", "module", "another side"]
)
def test_a_place_with_no_delta_is_refused(register, makes):
    class Wrong(OddMethod):
        def place(self, config, arch, model):
            yield Place(hfadapt.method.sites.ffn_output(hfadapt.select_layers(config, arch)[0]), makes)

    register(Wrong())
    model = tiny_model("bert")
    with pytest.raises(AttachError, match=r"'odd' of mine \(mine-dist 1\.2\).*is no delta"):
        hfadapt.attach(model, Odd())
    assert not any("hfadapt" in name for name, _ in model.named_modules())
