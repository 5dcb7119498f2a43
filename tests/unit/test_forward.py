"""The ``forward`` that stands before the stock one: left on every way out, called directly, copied, seen by Trainer."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt import routing
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

INPUTS = tiny_inputs("bert")


def adapted(model_type="bert", head="", method="lora", names=("one", "two")):
    model = tiny_model(model_type, head) if head else tiny_model(model_type)
    hfadapt.attach(model, method, names=names, seed=0)
    randomize(model)
    return model.eval()


@torch.no_grad()
def run(model, **options):
    return model(**INPUTS, **options)[0]


class Interrupt:
    """Raises once, from inside of a layer or before a module runs."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *_):
        error, self.error = self.error, None
        if error is not None:
            raise error


ENDS = [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), asyncio.CancelledError(), ValueError("ours")]


@pytest.mark.parametrize("error", ENDS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", ["layer", "root", "base"])
def test_the_routing_is_put_back_on_every_way_out(error, place):
    model = adapted("t5", "seq2seq-lm")
    inputs = tiny_inputs("t5", "seq2seq-lm")
    inputs.pop("decoder_input_ids")
    options = {"max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True}
    hfadapt.activate(model, "two")
    want = torch.stack(model.generate(**inputs, **options).scores)
    module = {"layer": model.encoder.block[1], "root": model, "base": model.encoder}[place]
    handle = module.register_forward_pre_hook(Interrupt(error))
    with pytest.raises(type(error)):
        model(**tiny_inputs("t5", "seq2seq-lm"), task_ids="one")
    assert routing.current() is None
    handle.remove()
    handle = model.decoder.block[0].register_forward_pre_hook(Interrupt(error))
    with pytest.raises(type(error)):
        model.generate(**inputs, **options, task_ids="one")
    handle.remove()
    assert routing.current() is None
    assert torch.equal(torch.stack(model.generate(**inputs, **options).scores), want)


def test_an_interrupted_forward_inside_another_keeps_the_outer_routing():
    outer, inner = adapted(), adapted()
    want = run(outer, task_ids="one")
    inner.encoder.layer[0].register_forward_hook(Interrupt(KeyboardInterrupt()))

    def run_another(*_):
        with pytest.raises(KeyboardInterrupt):
            run(inner, task_ids="two")

    outer.encoder.layer[0].register_forward_pre_hook(run_another)
    assert torch.equal(run(outer, task_ids="one"), want)


@pytest.mark.parametrize("method", ["lora", "mam", "pal", "unipelt"])
def test_a_direct_call_of_forward_computes_what_a_call_computes(method):
    model = adapted(method=method)
    with torch.no_grad():
        for ids in ("one", ["two", "one", "two"]):
            assert torch.equal(model.forward(**INPUTS, task_ids=ids)[0], run(model, task_ids=ids))


def test_the_signature_is_the_stock_ones_and_task_ids():
    stock = inspect.signature(tiny_model("bert").forward)
    model = adapted()
    ours = inspect.signature(model.forward)
    assert [p for p in ours.parameters if p != "task_ids"] == list(stock.parameters)
    assert ours.parameters["task_ids"].kind is inspect.Parameter.KEYWORD_ONLY
    hfadapt.detach(model)
    assert inspect.signature(model.forward) == stock and "forward" not in model.__dict__


@pytest.mark.parametrize("through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_run_their_own_weights(through):
    model = adapted()
    want = run(model, task_ids="one")
    other = through(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert other.forward.module is other and torch.equal(run(other, task_ids="one"), want)


def test_what_data_parallel_copies_runs_the_copys_weights():
    model = adapted()
    replica = model._replicate_for_data_parallel()
    assert replica.forward.module is replica and model.forward.module is model


def test_a_wrapper_of_forward_made_before_attach_is_kept_and_comes_back():
    model, calls = tiny_model("bert").eval(), []
    wrapped = model.forward

    def wrapper(*args, **kwargs):
        calls.append(kwargs)
        return wrapped(*args, **kwargs)

    model.forward = functools.wraps(wrapped)(wrapper)
    hfadapt.attach(model, "lora", names=("one", "two"), verify=False)
    run(model, task_ids="one")
    assert len(calls) == 1 and "task_ids" not in calls[0]
    hfadapt.detach(model)
    assert model.forward.__wrapped__ is wrapped


def test_a_wrapper_made_afterwards_survives_detach_and_another_attach():
    model = adapted()
    ours = model.forward
    model.forward = functools.wraps(ours)(lambda *args, **kwargs: ours(*args, **kwargs))
    stock = tiny_model("bert").eval()
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if "hfadapt" not in k})
    hfadapt.detach(model)
    assert torch.equal(run(model), run(stock))
    hfadapt.attach(model, "lora", names=("one", "two"), seed=0)
    with pytest.raises(RoutingError, match="none was chosen"):
        run(model)
    assert run(model, task_ids="one").shape == run(stock).shape


def test_no_module_but_those_that_route_has_a_forward_of_its_own():
    model = adapted()
    own = {name for name, module in model.named_modules() if "forward" in module.__dict__}
    assert own == {"", "encoder"} and isinstance(model, nn.Module)
