"""Parallel: one input through several adapters; the trunk below the first delta runs once."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

import hfadapt
from hfadapt.errors import CompositionError
from hfadapt.testing.tiny import TINY_TYPES, tiny_inputs, tiny_model
from tests.unit.releases import checkpoint_activations

METHODS = {
    "houlsby": "houlsby",
    "par_bn": "par_bn",
    "pal": hfadapt.PAL(8, num_heads=2),
    "lora": hfadapt.LoRA(4),
    "top_ffn": hfadapt.TopFFN(8, 2),
    "top_layer": hfadapt.TopLayer(),
}


def adapted(model_type: str, method, **kwargs):
    model = tiny_model(model_type).double().eval()
    hfadapt.attach(model, method, names=["a", "b", "c"], seed=0, **kwargs)
    with torch.no_grad():
        for name in "abc":
            for parameter in hfadapt.parameters_of(model, name).values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_of(model_type: str, batch: int = 2) -> dict[str, torch.Tensor]:
    given = tiny_inputs(model_type, batch=batch, padding="right")
    return {k: v.double() if v.is_floating_point() else v for k, v in given.items()}


class Rows:
    """Notes the batch size that enters each layer."""

    def __init__(self, model, stack: int = -1) -> None:
        self.seen: list[int] = []
        found = hfadapt.attachment(model).arch.stacks[stack]
        for path in dict.fromkeys(found.layer_paths):
            module = model.get_submodule(path)
            module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs) -> None:
        self.seen.append((args[0] if args else next(iter(kwargs.values()))).shape[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", TINY_TYPES)
@torch.no_grad()
def test_parallel_equals_each_alone_stacked_task_major(model_type: str, method: str) -> None:
    model, inputs = adapted(model_type, METHODS[method]), inputs_of(model_type)
    alone = torch.cat([model(**inputs, task_ids=name)[0] for name in "abc"])
    with hfadapt.active(model, hfadapt.Parallel("a", "b", "c")):
        together = model(**inputs)[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 if model_type == "t5" else 1e-9)


@torch.no_grad()
def test_the_batch_grows_at_the_first_layer_with_a_delta() -> None:
    model, inputs = adapted("bert", hfadapt.Pfeiffer(reduction_factor=4, layers=(1,))), inputs_of("bert")
    rows = Rows(model)
    with hfadapt.active(model, hfadapt.Parallel("a", "b", "c")):
        model(**inputs)
    assert rows.seen == [2, 6]


@torch.no_grad()
def test_dropped_layers_belong_to_the_trunk() -> None:
    model, inputs = adapted("bert", "pfeiffer"), inputs_of("bert")
    rows = Rows(model)
    hfadapt.set_adapter_drop(model, 1)
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        model(**inputs)
    assert rows.seen == [2, 4]


@pytest.mark.parametrize("method", ["top_ffn", "top_layer"])
@torch.no_grad()
def test_the_base_runs_once_for_all_task_functions_on_top(method: str) -> None:
    model, inputs = adapted("bert", METHODS[method]), inputs_of("bert")
    rows = Rows(model)
    with hfadapt.active(model, hfadapt.Parallel("a", "b", "c")):
        out = model(**inputs)
    assert rows.seen == [2, 2] and out[0].shape[0] == 6


@torch.no_grad()
def test_parallel_with_every_layer_dropped_is_the_base_for_each() -> None:
    model, inputs = adapted("bert", "houlsby"), inputs_of("bert")
    with hfadapt.active(model, None):
        base = model(**inputs)[0]
    hfadapt.set_adapter_drop(model, 2)
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        assert torch.equal(model(**inputs)[0], torch.cat([base, base]))


def test_gradients_equal_those_of_each_alone_also_under_checkpointing() -> None:
    model, inputs = adapted("bert", hfadapt.Pfeiffer(reduction_factor=4, layers=(1,))), inputs_of("bert")

    def gradients() -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for a in "ab" for n, p in hfadapt.parameters_of(model, a).items()}

    for name in "ab":
        model(**inputs, task_ids=name)[0].square().sum().backward()
    want = gradients()
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            checkpoint_activations(model, use_reentrant=False)
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        with hfadapt.active(model, hfadapt.Parallel("a", "b")):
            model(**inputs)[0].square().sum().backward()
        for key, value in gradients().items():
            torch.testing.assert_close(value, want[key], rtol=0, atol=1e-9)


@torch.no_grad()
def test_children_may_be_stacks_and_averages() -> None:
    model, inputs = adapted("bert", "pfeiffer"), inputs_of("bert")
    children = ("a", hfadapt.Stack("b", "c"), hfadapt.Average("a", "c"))
    alone = []
    for child in children:
        with hfadapt.active(model, child):
            alone.append(model(**inputs)[0])
    with hfadapt.active(model, hfadapt.Parallel(*children)):
        torch.testing.assert_close(model(**inputs)[0], torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@torch.no_grad()
def test_encoder_decoder_models_grow_in_the_stack_that_has_deltas(stack: str) -> None:
    model, inputs = adapted("bart", hfadapt.Houlsby(stack=stack, layers=(1,))), inputs_of("bart")
    encoder, decoder = Rows(model, 0), Rows(model, 1)
    alone = torch.cat([model(**inputs, task_ids=name)[0] for name in "ab"])
    encoder.seen.clear(), decoder.seen.clear()
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        together = model(**inputs)[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    assert (encoder.seen, decoder.seen) == (([2, 4], [4, 4]) if stack == "encoder" else ([2, 2], [2, 4]))


@torch.no_grad()
def test_a_single_input_and_a_single_child() -> None:
    model, inputs = adapted("bert", "houlsby"), inputs_of("bert", batch=1)
    for names in ("abc", "b"):
        alone = torch.cat([model(**inputs, task_ids=name)[0] for name in names])
        with hfadapt.active(model, hfadapt.Parallel(*names)):
            torch.testing.assert_close(model(**inputs)[0], alone, rtol=0, atol=1e-9)


def test_labels_are_repeated_for_the_head() -> None:
    config = tiny_model("bert").config
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    hfadapt.attach(model, "houlsby", names=["a", "b"])
    inputs, labels = inputs_of("bert"), torch.tensor([0, 2])
    losses = [model(**inputs, labels=labels, task_ids=name).loss for name in "ab"]
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        out = model(**inputs, labels=labels)
    torch.testing.assert_close(out.loss, sum(losses) / 2)


@torch.no_grad()
def test_a_head_that_reads_the_input_again_gets_all_rows_from_the_start() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    hfadapt.attach(model, hfadapt.LowRank(4, init="normal"), names=["a", "b"])
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 3, 4]])
    alone = torch.cat([model(input_ids=ids, task_ids=name).logits for name in "ab"])
    rows = Rows(model)
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        torch.testing.assert_close(model(input_ids=ids).logits, alone)
    assert rows.seen[-2:] == [4, 4]


def test_unknown_children_are_refused() -> None:
    model = adapted("bert", "houlsby")
    with pytest.raises(CompositionError, match="nobody"):
        hfadapt.activate(model, hfadapt.Parallel("a", "nobody"))


@torch.no_grad()
def test_afterwards_the_model_is_as_before() -> None:
    model, inputs = adapted("bert", "houlsby"), inputs_of("bert")
    before = model(**inputs, task_ids="a")[0]
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):
        model(**inputs)
    assert torch.equal(model(**inputs, task_ids="a")[0], before)
    hfadapt.detach(model)
    assert not any(m._forward_pre_hooks for m in model.modules())
