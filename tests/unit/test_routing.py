"""A routing is fixed when a call begins; what changes while it runs is in the pass that the stacks of a call share."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hfadapt
from hfadapt.routing import current
from hfadapt.testing.tiny import tiny_inputs, tiny_model


def routings_of(model, modules, **call):
    """Run a forward; return the routing that was set before the first of its modules, and inside each of them."""
    seen = []
    handles = [m.register_forward_pre_hook(lambda *_: seen.append(current()), prepend=True) for m in modules]
    with torch.no_grad():
        model(**call)
    for handle in handles:
        handle.remove()
    return seen


def test_no_field_of_a_routing_can_be_set():
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", "a")
    (routing,) = routings_of(model, [model.encoder.layer[0]], **tiny_inputs("bert"))
    for field in dataclasses.fields(routing):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(routing, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        routing.given.mask = None


def test_stacks_of_a_call_have_masks_of_their_own_and_one_pass():
    model = tiny_model("bart")
    hfadapt.attach(model, "lora", "a")
    ids = tiny_inputs("bart", batch=2)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    short = torch.ones(2, 3, dtype=torch.long)
    layers = [model.get_encoder().layers[0], model.get_decoder().layers[0]]
    encoder, decoder = routings_of(
        model, layers, input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :3], decoder_attention_mask=short
    )
    assert encoder.mask.equal(mask)
    assert decoder.mask.equal(short)
    assert decoder.memory_mask.equal(mask)
    assert encoder.memory_mask is None
    assert encoder.state is decoder.state
    assert encoder.given.tokens == ids.shape[1]
    assert decoder.given.tokens == 3


def test_repeated_rows_keep_what_the_pass_prepared_and_not_what_it_holds_of_the_rows():
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.PrefixConfig(3, mlp_size=8), names=["a", "b"])
    call = {**tiny_inputs("bert", batch=2), "task_ids": ["a", "b"]}
    (routing,) = routings_of(model, [model.encoder.layer[1]], **call)
    grown = routing.for_batch(6)
    assert grown.ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert grown.prepared is routing.prepared
    assert routing.state.found
    assert not grown.state.found
    assert routing.for_all(1).uniform == 1
    assert routing.for_batch(2) is routing
