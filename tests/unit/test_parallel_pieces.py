"""A ``Parallel`` that runs in pieces returns what it returns whole, and no layer runs more often than it must."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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
        seen.append(len(found))
        return found

    monkeypatch.setattr(parallel_pieces, "_TOKENS", 1)
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
        monkeypatch.setattr(parallel_pieces, "_TOKENS", tokens)
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
