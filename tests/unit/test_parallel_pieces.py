"""A ``Parallel`` that runs in pieces returns what it returns whole, and no layer runs more often than it must."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import hfadapt
from hfadapt import Parallel
from hfadapt.runtime import parallel_pieces
from hfadapt.runtime.parallel_pieces import TrunkForward
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

NAMES = ("a", "b", "c", "d", "e")
ALL = Parallel(*NAMES)


def adapted(model_type, drop=0):
    model = tiny_model(model_type).eval()
    hfadapt.attach(model, "lora", names=NAMES)
    randomize(model)
    hfadapt.set_adapter_drop(model, drop)
    return model


def returned(model, node=ALL, **call):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), hfadapt.active(model, node), counter:
        output = model(**tiny_inputs(model.config.model_type), **call)
    counts = counter.get_flop_counts()
    # Angles are made anew for each piece, and releases before 5.24 make them by a matrix product.
    angles = sum(sum(ops.values()) for module, ops in counts.items() if module.endswith("rotary_emb"))
    return output, counter.get_total_flops() - angles


def pieces(monkeypatch):
    """Let every child be a piece, and count them."""
    seen, runs = [], parallel_pieces.pieces_of

    def counted(*args):
        found = runs(*args)
        seen.append(len(found.choices))
        return found

    monkeypatch.setattr(parallel_pieces, "TOKENS", 1)
    monkeypatch.setattr("hfadapt.runtime.root_hooks.pieces_of", counted)
    return seen


@pytest.mark.parametrize("drop", [0, 1])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert", "distilbert", "gpt2", "llama"])
def test_pieces_return_what_the_whole_returns_with_as_many_products(monkeypatch, model_type, drop):
    model = adapted(model_type, drop)
    call = {"use_cache": False} if model_type in ("gpt2", "llama") else {}
    whole, flops = returned(model, **call)
    seen = pieces(monkeypatch)
    cut, cut_flops = returned(model, **call)
    assert seen == [5, 0, 0, 0, 0, 0] and type(cut) is type(whole) and list(cut) == list(whole)
    for key, value in whole.items():
        torch.testing.assert_close(cut[key], value, rtol=1e-5, atol=1e-6)
    assert cut_flops == flops
    for name, rows in zip(NAMES, cut[0].chunk(5), strict=True):
        alone, _ = returned(model, name, **call)
        torch.testing.assert_close(rows, alone[0], rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_called_for_several_depths_runs_for_each_child_from_the_first(monkeypatch):
    model = adapted("albert")
    whole, _ = returned(model)
    seen = pieces(monkeypatch)
    torch.testing.assert_close(returned(model)[0][0], whole[0], rtol=1e-5, atol=1e-6)
    hfadapt.set_adapter_drop(model, 1)
    returned(model)
    assert seen == [5, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "call", [{"output_hidden_states": True}, {"output_attentions": True}, {"use_cache": True}], ids=str
)
def test_what_is_not_of_the_rows_of_a_piece_is_returned_whole(monkeypatch, call):
    seen = pieces(monkeypatch)
    model = adapted("gpt2" if "use_cache" in call else "bert")
    if "output_attentions" in call:
        model.set_attn_implementation("eager")
    output, _ = returned(model, **call)
    assert set(seen) == {0} and output[0].shape[0] % 5 == 0


def test_training_runs_whole(monkeypatch):
    seen = pieces(monkeypatch)
    model = adapted("bert")
    with hfadapt.active(model, ALL):
        output = model(**tiny_inputs("bert"))
    output[0].sum().backward()
    assert set(seen) == {0}


def test_a_small_batch_runs_whole_and_a_large_one_some_children_at_a_time(monkeypatch):
    model = adapted("bert")
    rows = tiny_inputs("bert")["input_ids"]
    seen = pieces(monkeypatch)
    for tokens, expected in ((5 * rows.numel(), 0), (2 * rows.numel(), 3), (rows.numel(), 5)):
        monkeypatch.setattr(parallel_pieces, "TOKENS", tokens)
        seen.clear()
        returned(model)
        assert seen[0] == expected


def test_layers_are_given_back_and_copies_are_their_own(monkeypatch):
    model = adapted("bert", 1)
    returned(model)
    layers = model.encoder.layer
    assert all(isinstance(layer.__dict__["forward"], TrunkForward) for layer in layers)
    twin = copy.deepcopy(model)
    assert twin.encoder.layer[0].__dict__["forward"].layer is twin.encoder.layer[0]
    again = pickle.loads(pickle.dumps(model))
    pieces(monkeypatch)
    want, _ = returned(model)
    for one in (twin, again):
        torch.testing.assert_close(returned(one)[0][0], want[0], rtol=1e-5, atol=1e-6)
    hfadapt.detach(model)
    assert not any("forward" in layer.__dict__ for layer in layers)


DEPTHS = {
    "a": hfadapt.LoRA(4),
    "b": hfadapt.LoRA(2, layers=(2, 3)),
    "c": hfadapt.Pfeiffer(reduction_factor=4, layers=(2, 3)),
    "d": hfadapt.LoRA(4, layers=(3,)),
}
FOUR_LAYERS = {"gpt2": {"n_layer": 4}, "t5": {"num_layers": 4, "num_decoder_layers": 4}}
FOUR_LAYERS["bart"] = {"encoder_layers": 4, "decoder_layers": 4}


class Rows:
    """Counts the rows that each layer of a stack really computes."""

    def __init__(self, model):
        self.seen = {}
        for depth, path in enumerate(hfadapt.attachment(model).arch.stacks[0].layer_paths):
            inside = next(
                m
                for m in model.get_submodule(path).modules()
                if isinstance(m, torch.nn.LayerNorm | T5LayerNorm | LlamaRMSNorm)
            )
            inside.register_forward_pre_hook(functools.partial(self, depth))

    def __call__(self, depth, module, args):
        self.seen[depth] = self.seen.get(depth, 0) + args[0].shape[0]

    def take(self):
        seen, self.seen = self.seen, {}
        return [seen[depth] for depth in sorted(seen)]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5", "bart"])
def test_children_that_begin_at_different_layers_share_what_lies_below_each(model_type):
    model = tiny_model(model_type, **FOUR_LAYERS.get(model_type, {"num_hidden_layers": 4})).eval()
    for name, method in DEPTHS.items():
        hfadapt.attach(model, method, name)
    randomize(model)
    rows, call = Rows(model), {"use_cache": False} if model_type != "bert" else {}
    size = len(tiny_inputs(model_type)["input_ids"])
    for drop, expected in ((0, [2, 2, 4, 4]), (2, [1, 1, 4, 4]), (3, [1, 1, 1, 4])):
        hfadapt.set_adapter_drop(model, drop)
        alone = [returned(model, name, **call)[0] for name in DEPTHS]
        rows.take()
        together, _ = returned(model, Parallel(*DEPTHS), **call)
        assert rows.take() == [size * count for count in expected]
        for key, value in together.items():
            torch.testing.assert_close(value, torch.cat([one[key] for one in alone]), rtol=1e-5, atol=1e-6)


def test_children_of_different_depths_train_with_the_gradients_that_each_has_alone():
    model = tiny_model("bert", num_hidden_layers=4).double()
    for name in "abd":
        hfadapt.attach(model, DEPTHS[name], name)
    randomize(model)
    parameters = {name: hfadapt.parameters_of(model, name) for name in "abd"}
    for one in (p for found in parameters.values() for p in found.values()):
        one.requires_grad_(True)

    def gradients(node):
        model.zero_grad()
        with hfadapt.active(model, node):
            output = model(**tiny_inputs("bert"))[0]
        output.pow(2).sum().backward()
        return {key: p.grad for found in parameters.values() for key, p in found.items() if p.grad is not None}

    alone = {}
    for name in "abd":
        alone |= gradients(name)
    together = gradients(Parallel("b", "d", "a"))
    assert together.keys() == alone.keys() and len(alone) > 20
    for key, grad in alone.items():
        torch.testing.assert_close(together[key], grad, rtol=1e-9, atol=1e-12)
